"""Compares `breakers serve` over HTTP with llama.cpp and mistral.rs on the same GGUF file, in turns.

    cargo build --release -p breakers
    python -m venv peer && CMAKE_ARGS=-DGGML_NATIVE=ON peer/bin/pip install llama-cpp-python==0.3.36 numpy
    python benches/load_peers.py target/release/breakers MODEL.gguf --llama peer/bin/python --rounds 3
    python benches/load_peers.py target/release/breakers MODEL.gguf --llama peer/bin/python --jobs 47

Ours answers eight requests at a time over HTTP, the client included; greedy, and with temperature 1 and top-p 0.95.
llama.cpp writes as many sequences in one pass through its C interface, with flash attention and without, and without a
server (`peer_llama_cpp.py streams`); mistral.rs through its Python interface (`peer_mistralrs.py`, with --mistralrs
PYTHON). All have the same prompts, as many threads, and one untimed text before. --jobs asks short requests: ours at
once, llama.cpp one by one with what it keeps of the prompt before. Medians of the rounds, with the least and the most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time

from load_serve import post
from soak_serve import Server


def ours(server, model, n, prompt, tokens, **settings):
    """Tokens and seconds of n texts at once. One without an answer ends the program: the others would be faster."""
    found = [None] * n
    url = f"http://127.0.0.1:{server.port}/v1/completions"

    def one(i):
        body = {"model": model, "prompt": prompt(i), "max_tokens": tokens, "seed": i, **settings}
        found[i] = post(url, body)["usage"]["completion_tokens"]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    if None in found:
        sys.exit("a request was not answered")
    return sum(found), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the program `breakers`")
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--llama", help="a Python with llama-cpp-python and numpy")
    parser.add_argument("--mistralrs", help="a Python with mistralrs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=None, help="of each text (128, of jobs 32)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=0, help="so many short requests instead")
    parser.add_argument("--words", type=int, default=300, help="of the instructions that jobs have in common")
    arguments = parser.parse_args()
    tokens = arguments.tokens or (32 if arguments.jobs else 128)
    folder = os.path.dirname(os.path.abspath(__file__))
    found = {}

    def peer(python, script, *flags):
        command = [python, os.path.join(folder, script), *map(str, flags)]
        command += ["--model", arguments.model, "--threads", str(arguments.threads), "--max-tokens", str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def add(name, value):
        found.setdefault(name, []).append(value)

    flags = ["--threads", arguments.threads, "--max-waiting", max(32, arguments.jobs)]
    with Server(arguments, *flags) as server:
        model = os.path.basename(arguments.model).removesuffix(".gguf")
        ours(server, model, 1, lambda i: "Once", 4, temperature=0)
        for round_ in range(arguments.rounds):
            number = f"{time.time_ns()}"
            if arguments.jobs:
                common = "You answer in the words of a careful captain. " * (arguments.words // 9)
                for name, beginning in (("own prompts", ""), ("common instructions", common)):
                    prompt = lambda i: f"{number}. {beginning}Report {i}:"
                    n, seconds = ours(server, model, arguments.jobs, prompt, tokens, temperature=0)
                    add(f"ours, {name}", seconds)
                    add(f"tokens of ours, {name}", n)
                if arguments.llama:
                    flags = ["jobs", "--flash-attention", "--jobs", arguments.jobs, "--words", arguments.words]
                    answer = peer(arguments.llama, "peer_llama_cpp.py", *flags)
                    for name in ("own prompts", "common instructions"):
                        add(f"llama.cpp one by one, {name}", answer[name])
                        add(f"tokens of llama.cpp, {name}", answer[f"tokens, {name}"])
                continue
            for way, settings in (("greedy", {"temperature": 0}), ("sampled", {"temperature": 1, "top_p": 0.95})):
                prompt = lambda i: f"{number}{way}-{i}. The keeper of the lighthouse"
                n, seconds = ours(server, model, arguments.streams, prompt, tokens, **settings)
                add(f"ours, {way}", n / seconds)
            if arguments.llama:
                for flag in ([], ["--flash-attention"]):
                    flags = ["streams", "--sequences", arguments.streams, "--context", tokens + 64, *flag]
                    answer = peer(arguments.llama, "peer_llama_cpp.py", *flags)
                    add(f"llama.cpp{', flash attention' * bool(flag)}", answer["tok_s"])
            if arguments.mistralrs:
                answer = peer(arguments.mistralrs, "peer_mistralrs.py", "--streams", arguments.streams)
                add("mistral.rs", answer["tok_s"])
    medians = {name: statistics.median(values) for name, values in found.items()}
    result = {"model": model, "seconds" if arguments.jobs else "tokens_per_second": medians}
    result["spread"] = {name: [min(values), max(values)] for name, values in found.items()}
    if arguments.jobs and arguments.llama:
        ways = ("own prompts", "common instructions")
        result["times"] = {w: medians[f"llama.cpp one by one, {w}"] / medians[f"ours, {w}"] for w in ways}
    elif not arguments.jobs:
        result["sampled_of_greedy"] = medians["ours, sampled"] / medians["ours, greedy"]
        peers = [value for name, value in medians.items() if not name.startswith("ours")]
        if peers:
            result["times_the_best_peer"] = medians["ours, greedy"] / max(peers)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
