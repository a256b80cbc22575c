"""Measures a server of OpenAI's protocol: texts at a time, and the time to a first token behind a long beginning.

    breakers serve smollm2-135m --port 8080
    python benches/load_serve.py http://127.0.0.1:8080/v1 --streams 1,8 --rounds 5

Needs only Python. Requests are not streamed, so that the client takes no time from the server while texts are
written. Texts are greedy, ignore nothing, and begin with numbers of their own, so that none is cached. Medians of
the rounds; ways take turns within a round. Prints one JSON object.
"""

import argparse
import json
import statistics
import threading
import time
import urllib.request


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="up to /v1")
    parser.add_argument("--streams", default="1,8", help="texts at a time, several counts")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each text")
    parser.add_argument("--words", type=int, default=1500, help="words of the long beginning")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    arguments = parser.parse_args()
    with urllib.request.urlopen(arguments.url + "/models") as reply:
        model = json.load(reply)["data"][0]["id"]
    serial = [0]

    def complete(prompt, n):
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": n,
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
            "seed": 1,
        }
        return post(arguments.url + "/completions", body)["usage"]

    def texts(n):
        """New tokens a second of n texts at a time."""
        usages = [None] * n
        begun = time.monotonic()

        def one(i):
            usages[i] = complete(f"{serial[0]}-{i}. The keeper of the lighthouse", arguments.tokens)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        serial[0] += 1
        return sum(usage["completion_tokens"] for usage in usages) / (time.monotonic() - begun)

    def first_token(number, question):
        begun = time.monotonic()
        beginning = f"Number {number}. " + "You answer in the words of a careful captain. " * (arguments.words // 9)
        usage = complete(beginning + question, 1)
        return time.monotonic() - begun, usage

    counts = [int(n) for n in arguments.streams.split(",")]
    rates = {n: [] for n in counts}
    cold, warm, cached = [], [], 0
    for round_ in range(arguments.rounds):
        for n in counts:
            rates[n].append(texts(n))
        number = f"{time.time_ns()}"
        seconds, usage = first_token(number, "What is a knot?")
        cold.append(seconds)
        for i in range(4):
            seconds, usage = first_token(number, f"What is a rope of {i} yards?")
            warm.append(seconds)
            cached = usage["prompt_tokens_details"]["cached_tokens"]
    medians = {n: statistics.median(values) for n, values in rates.items()}
    print(json.dumps({
        "model": model,
        "tokens_per_second": medians,
        "against_one": {n: medians[n] / medians[counts[0]] for n in counts},
        "spread": {n: [min(values), max(values)] for n, values in rates.items()},
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": cached,
        "first_token_cold_ms": 1000 * statistics.median(cold),
        "first_token_warm_ms": 1000 * statistics.median(warm),
    }, indent=1))


if __name__ == "__main__":
    main()
