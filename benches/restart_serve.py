"""Measures what `breakers serve --prefixes` saves after a restart, and kills it while it saves.

    cargo build --release -p breakers
    python benches/restart_serve.py target/release/breakers --model smollm2-135m --rounds 5
    python benches/restart_serve.py target/release/breakers --model smollm2-135m --kills 100

Needs only Python. A round asks one question behind a long beginning (cold), others behind the same one (cached), kills
the server, starts it again and asks another one (restored). Times are those of requests for one token. Every answer is
compared with that of a server that keeps nothing; one that differs ends the program with exit code 1. Prints one JSON
object.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request


class Server:
    """A process that answers on a port of its own."""

    def __init__(self, arguments, *flags):
        command = [arguments.program, "serve", arguments.model, "--port", "0", *flags]
        if arguments.threads:
            command += ["--threads", str(arguments.threads)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.url = None
        for line in self.process.stderr:
            if "listening on" in line:
                self.url = line.split()[-1]
                break
        if self.url is None:
            sys.exit("the server did not start")
        # Whoever does not read stops the server at some point.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ask(self, prompt, n):
        """Seconds, the text and the usage of an answer."""
        body = {"model": self.model(), "prompt": prompt, "max_tokens": n, "temperature": 0}
        request = urllib.request.Request(
            self.url + "/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        begun = time.monotonic()
        with urllib.request.urlopen(request, timeout=600) as reply:
            answer = json.load(reply)
        return time.monotonic() - begun, answer["choices"][0]["text"], answer["usage"]

    def model(self):
        if not hasattr(self, "name"):
            with urllib.request.urlopen(self.url + "/models") as reply:
                self.name = json.load(reply)["data"][0]["id"]
        return self.name


def saved(folder):
    """Whether files are there and none is being written."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return any(name.endswith(".prefix") for name in names) and all(name.endswith(".prefix") for name in names)


def beginning(number, words):
    return f"{number}. " + "You answer in the words of a careful captain. " * (words // 9)


def measure(arguments):
    found = {"cold": [], "cached": [], "restored": []}
    n_cached = {"cached": set(), "restored": set()}
    answers = []
    for round_ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            text = beginning(time.time_ns(), arguments.words)
            first = Server(arguments, "--prefixes", folder)
            # Weights are read, threads run.
            first.ask("The keeper", 8)
            found["cold"].append(first.ask(text + "What is a knot?", 1)[0])
            for question in ("What is a sail?", "What is a bell?", "What is a reef?"):
                seconds, _, usage = first.ask(text + question, 1)
                found["cached"].append(seconds)
                n_cached["cached"].add(usage["prompt_tokens_details"]["cached_tokens"])
            while not saved(folder):
                time.sleep(0.01)
            first.kill()
            second = Server(arguments, "--prefixes", folder)
            second.ask("The keeper", 8)
            seconds, _, usage = second.ask(text + "What is a buoy?", 1)
            found["restored"].append(seconds)
            n_cached["restored"].add(usage["prompt_tokens_details"]["cached_tokens"])
            answers.append((text + "What is a mast?", second.ask(text + "What is a mast?", 24)[1]))
            second.kill()
    plain = Server(arguments, "--cache-mb", "0")
    differ = sum(plain.ask(prompt, 24)[1] != text for prompt, text in answers)
    plain.kill()
    result = {"prompt_tokens": usage["prompt_tokens"], "answers": len(answers), "differ": differ}
    for way, seconds in found.items():
        result[way + "_ms"] = 1000 * statistics.median(seconds)
        result[way + "_range_ms"] = [1000 * min(seconds), 1000 * max(seconds)]
    result["cached_tokens"] = {way: sorted(counts) for way, counts in n_cached.items()}
    return result


def kills(arguments):
    chance = random.Random(arguments.seed)
    text = lambda i: beginning(i, arguments.words // 3) + "What is a knot?"
    counts = {"kills": arguments.kills, "answers": 0, "cached": 0, "killed_while_writing": 0, "differ": 0}
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        # Room for some of the files, so that some are removed as others are written.
        flags = ("--prefixes", folder, "--prefixes-mb", str(arguments.prefixes_mb))
        for life in range(arguments.kills + 1):
            server = Server(arguments, *flags)
            # Texts that files may hold, the newest first, and one that none does.
            for i in (life - 1, life - 2, life):
                _, answer, usage = server.ask(text(i), 8)
                answers.append((text(i), answer))
                counts["cached"] += usage["prompt_tokens_details"]["cached_tokens"] > 256
            # It is written at this moment.
            time.sleep(chance.uniform(0, arguments.fuse))
            server.kill()
            counts["killed_while_writing"] += any(not name.endswith(".prefix") for name in os.listdir(folder))
        counts["files"] = len(os.listdir(folder))
    counts["answers"] = len(answers)
    plain = Server(arguments, "--cache-mb", "0")
    expected = {prompt: plain.ask(prompt, 8)[1] for prompt in dict(answers)}
    plain.kill()
    counts["differ"] = sum(answer != expected[prompt] for prompt, answer in answers)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", help="the program `breakers`")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--words", type=int, default=1500, help="words of the long beginning")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=0, help="kill so many times instead of measuring")
    parser.add_argument("--fuse", type=float, default=0.06, help="the most seconds from an answer to the kill")
    parser.add_argument("--prefixes-mb", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = kills(arguments) if arguments.kills else measure(arguments)
    print(json.dumps(result, indent=1))
    if result["differ"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
