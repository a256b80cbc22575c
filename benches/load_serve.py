"""Measures a server of OpenAI's protocol: texts at a time, and the time to a first token behind a long beginning.

    breakers serve smollm2-135m --port 8080
    python benches/load_serve.py http://127.0.0.1:8080/v1 --streams 1,8 --rounds 5

Needs only Python. Requests are not streamed, so that the client takes no time from the server while texts are
written. Texts are greedy, ignore nothing, and begin with numbers of their own, so that none is cached. Medians of
the rounds; ways take turns within a round. Prints one JSON object.

--gaps streams texts instead, lets a long prompt come while they run, and tells how long their readers wait from piece
to piece with it and without. --jobs 47 runs so many short requests one by one and at once, with prompts of their own
and behind common instructions. --edits lets the model copy code with a change, with a `prediction` and without.
"""

import argparse
import inspect
import json
import statistics
import sys
import threading
import time
import urllib.request


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def stream(url, model, prompt, tokens, out):
    """The times at which the pieces of a streamed text come."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        url + "/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        for line in reply:
            if line.startswith(b"data: {"):
                out.append(time.monotonic())


def gaps(arguments, model, first_token, n):
    """Gaps of n streams in milliseconds, with a long prompt in their midst and without."""
    found = {"alone": [], "beside": []}
    prompts = []
    for round_ in range(arguments.rounds):
        for way in ("alone", "beside"):
            times = [[] for _ in range(n)]
            threads = [
                threading.Thread(
                    target=stream,
                    args=(arguments.url, model, f"{time.time_ns()} {i}. The keeper", arguments.tokens, times[i]),
                )
                for i in range(n)
            ]
            for thread in threads:
                thread.start()
            # All have begun.
            while min(map(len, times)) < 5:
                time.sleep(0.005)
            since = time.monotonic()
            if way == "beside":
                seconds, usage = first_token(f"{time.time_ns()}", "What is a knot?")
                prompts.append((seconds, usage["prompt_tokens"]))
            until = time.monotonic()
            for thread in threads:
                thread.join()
            for pieces in times:
                for one, other in zip(pieces, pieces[1:]):
                    if way == "alone" or (one >= since and other <= until):
                        found[way].append(1000 * (other - one))
    result = {"streams": n, "prompt_tokens": prompts[0][1]}
    result["prompt_ms"] = 1000 * statistics.median(seconds for seconds, _ in prompts)
    for way, values in found.items():
        values.sort()
        at = lambda share: values[min(len(values) - 1, int(share * len(values)))]
        result[way] = {"gaps": len(values), "p50_ms": at(0.5), "p99_ms": at(0.99), "most_ms": values[-1]}
    return result


def jobs(arguments, complete):
    """Seconds of short requests one by one and at once."""
    common = "You answer in the words of a careful captain. " * (arguments.words // 9)
    result = {"jobs": arguments.jobs, "tokens": arguments.tokens}
    for name, beginning in (("own prompts", ""), ("common instructions", common)):
        seconds = {}
        for way in ("one by one", "at once"):
            number, answered = time.time_ns(), []
            threads = [
                # A beginning of this run's own, so that nothing of the other run is kept.
                threading.Thread(
                    target=lambda i: answered.append(
                        complete(f"{number}. {beginning}Report {i}:", arguments.tokens)
                    ),
                    args=(i,),
                )
                for i in range(arguments.jobs)
            ]
            begun = time.monotonic()
            for thread in threads:
                thread.start()
                if way == "one by one":
                    thread.join()
            for thread in threads:
                thread.join()
            seconds[way] = time.monotonic() - begun
            if len(answered) < arguments.jobs:
                # The others would seem to be faster.
                sys.exit("a request was not answered: --max-waiting of the server must have room for the jobs")
        result[name] = {**seconds, "times": seconds["one by one"] / seconds["at once"]}
    return result


def edits(arguments, model):
    """Seconds of answers that are mostly known, with a prediction and without."""
    code = inspect.getsource(jobs)
    tasks = {
        "as it is": "Repeat this code exactly, and write nothing else:",
        "renamed": "Repeat this code, but rename the variable `seconds` to `elapsed`. Write nothing else:",
    }
    found = {}
    for name, task in tasks.items():
        seconds, texts, usage = {"plain": [], "predicted": []}, set(), {}
        for round_ in range(arguments.rounds):
            for way in seconds:
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": f"{task}\n```python\n{code}```"}],
                    "max_completion_tokens": 400,
                    "temperature": 0,
                }
                if way == "predicted":
                    body["prediction"] = {"type": "content", "content": f"```python\n{code}```"}
                begun = time.monotonic()
                answer = post(arguments.url + "/chat/completions", body)
                # The first reads the prompt, which is kept for the others.
                if round_ > 0:
                    seconds[way].append(time.monotonic() - begun)
                texts.add(answer["choices"][0]["message"]["content"])
                usage[way] = answer["usage"]
        details = usage["predicted"]["completion_tokens_details"]
        found[name] = {
            **{way: statistics.median(values) for way, values in seconds.items()},
            "times": statistics.median(seconds["plain"]) / statistics.median(seconds["predicted"]),
            "answers": len(texts),
            "tokens": usage["plain"]["completion_tokens"],
            "accepted": details["accepted_prediction_tokens"],
            "rejected": details["rejected_prediction_tokens"],
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="up to /v1")
    parser.add_argument("--streams", default="1,8", help="texts at a time, several counts")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each text")
    parser.add_argument("--words", type=int, default=1500, help="words of the long beginning")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gaps", action="store_true", help="gaps of streams while a long prompt is read")
    parser.add_argument("--jobs", type=int, default=0, help="so many requests one by one and at once")
    parser.add_argument("--edits", action="store_true", help="answers that are mostly known, with a prediction")
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
    if arguments.gaps:
        return print(json.dumps({"model": model, **gaps(arguments, model, first_token, counts[-1])}, indent=1))
    if arguments.edits:
        return print(json.dumps({"model": model, **edits(arguments, model)}, indent=1))
    if arguments.jobs:
        return print(json.dumps({"model": model, **jobs(arguments, complete)}, indent=1))
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
