"""llama.cpp's quantized key-value caches, through PyPI's `llama-cpp-python` (and `numpy`).

    peer_kv_cache.py quality --model M.gguf --file TEXT --context 2048 --windows N [--type q4_0] [--threads N]
    peer_kv_cache.py speed   --model M.gguf --file TEXT --depths 2048,8192 [--type f16] [--flash-attention] [--threads N]

`quality` compares a cache with the f16 one on the same windows, by the same protocol as the example `kv_cache`: of
each window the second half counts. Each command prints one JSON object.
"""

import argparse
import json
import sys
import time

import llama_cpp
import numpy as np

TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
ROWS = 128


class Peer:
    def __init__(self, options, kind, n_context):
        self.llama = llama_cpp.Llama(
            model_path=options.model,
            n_ctx=n_context,
            n_batch=512,
            n_ubatch=512,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            logits_all=True,
            # A quantized cache of values needs it.
            flash_attn=options.flash_attention or kind != "f16",
            type_k=TYPES[kind],
            type_v=TYPES[kind],
            verbose=False,
        )
        self.context = self.llama._ctx.ctx
        self.n_vocab = self.llama.n_vocab()
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def feed(self, ids, first, all_logits):
        """Extends the sequence, which holds `first` tokens."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = first + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i + 1 == len(ids)
        if llama_cpp.llama_decode(self.context, batch) != 0:
            sys.exit("llama_decode failed")

    def logits(self, row):
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,)).astype(np.float64)


def log_softmax(logits):
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


def quality(options):
    peers = [Peer(options, kind, options.context) for kind in ("f16", options.type)]
    ids = peers[0].llama.tokenize(open(options.file, "rb").read())
    nll, divergence, count = [0.0, 0.0], 0.0, 0
    for window in range(min(options.windows, len(ids) // options.context)):
        tokens = ids[window * options.context : (window + 1) * options.context]
        for peer in peers:
            peer.clear()
        for start in range(0, options.context - 1, ROWS):
            part = tokens[start : min(start + ROWS, options.context - 1)]
            for peer in peers:
                peer.feed(part, start, True)
            for row in range(len(part)):
                if start + row < options.context // 2:
                    continue
                logs = [log_softmax(peer.logits(row)) for peer in peers]
                target = tokens[start + row + 1]
                for i in range(2):
                    nll[i] -= logs[i][target]
                divergence += (np.exp(logs[0]) * (logs[0] - logs[1])).sum()
                count += 1
    perplexity = [float(np.exp(x / count)) for x in nll]
    return {
        "type": options.type,
        "perplexity_f16": perplexity[0],
        "perplexity": perplexity[1],
        "change": perplexity[1] / perplexity[0] - 1,
        "divergence": float(divergence / count),
        "n_tokens": count,
    }


def speed(options):
    depths = [int(depth) for depth in options.depths.split(",")]
    peer = Peer(options, options.type, max(depths) + 64)
    text = peer.llama.tokenize(open(options.file, "rb").read())
    held, found = 0, []
    for depth in depths:
        tokens = [text[i % len(text)] for i in range(held, depth)]
        start = time.perf_counter()
        for at in range(0, len(tokens), 512):
            peer.feed(tokens[at : at + 512], held + at, False)
        prefill = time.perf_counter() - start
        held = depth
        times = []
        for _ in range(options.tokens):
            start = time.perf_counter()
            peer.feed([text[held % len(text)]], held, False)
            times.append(time.perf_counter() - start)
            held += 1
        found.append({"depth": depth, "decode_tok_s": 1 / float(np.median(times)), "prefill_s": prefill})
    return {"type": options.type, "flash_attention": options.flash_attention, "depths": found}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["quality", "speed"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--depths", default="2048")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--type", choices=sorted(TYPES), default="q4_0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flash-attention", action="store_true")
    options = parser.parse_args()
    print(json.dumps({"quality": quality, "speed": speed}[options.command](options)))


main()
