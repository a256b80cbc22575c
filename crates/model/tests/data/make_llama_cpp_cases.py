"""Greedy continuations by llama.cpp with the log-probabilities of its two best tokens.

Usage: make_llama_cpp_cases.py FOLDER > llama_cpp_cases.json, where FOLDER holds <model>.gguf; needs the PyPI
packages llama-cpp-python and numpy.
"""

import json
import sys

import llama_cpp
import numpy as np

MODELS = ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "Summarize: The water cycle describes how water evaporates from the surface of the earth, rises into the "
    "atmosphere, cools and condenses into rain or snow in clouds, and falls again to the surface as precipitation."
    "\nSummary:",
]
N_TOKENS = 48


def log_probabilities(model):
    logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    logits = np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def cases(path):
    model = llama_cpp.Llama(path, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    for prompt in PROMPTS:
        ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
        model.reset()
        model.eval(ids)
        steps = []
        for _ in range(N_TOKENS):
            scores = log_probabilities(model)
            best = np.argsort(-scores)[:2]
            steps.append([int(best[0]), round(float(scores[best[0]]), 4), round(float(scores[best[1]]), 4)])
            model.eval([int(best[0])])
        yield {"prompt_ids": ids, "steps": steps}


if __name__ == "__main__":
    json.dump({m: list(cases(f"{sys.argv[1]}/{m}.gguf")) for m in MODELS}, sys.stdout, separators=(",", ":"))
    print()
