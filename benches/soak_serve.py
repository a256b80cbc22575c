"""Puts `breakers serve` under strain and checks that nothing is lost, changed or kept.

    cargo build --release -p breakers
    python benches/soak_serve.py target/release/breakers exact                  # 500 requests; --requests 10000
    python benches/soak_serve.py target/release/breakers cancel                 # 500 sockets; --requests 10000
    python benches/soak_serve.py target/release/breakers overload --seconds 60
    python benches/soak_serve.py target/release/breakers swap --other gemma3.gguf --model smollm2.gguf
    python benches/soak_serve.py target/release/breakers idle

exact     random requests at random moments (chats and texts, streamed and whole, n, seeds, stops, schemas, log-
          probabilities, tenants, beginnings in common, some closed midway) to servers with other threads, lengths of
          passes, memory, drafts and restarts. Each answer is compared, log-probabilities included, with the one that
          the same request got alone from a server that keeps nothing.
cancel    sockets closed at random moments. Afterwards nothing runs, waits or is held, and the process is no larger.
overload  ten times as many requests as the server finishes, at random moments, some closed midway.
swap      eight clients while an alias goes to and fro between two versions.
idle      a thousand connections that ask once and then say nothing.

Needs only Python and Linux. Prints one JSON object; what a run promises and does not hold is named in `failures`, and
the exit code is then 1. A run that did not do what it should put under strain (no beginning found, no pause, …) fails.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

KEYS = ["key-of-red", "key-of-green", "key-of-blue"]


class Server:
    """A process of the program that listens on a port of its own."""

    def __init__(self, arguments, *flags, model=True):
        names = [arguments.model] if model else []
        command = [arguments.program, "serve", *names, "--port", "0", *map(str, flags)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "listening on" in line:
                break
        else:
            sys.exit(f"{' '.join(command)}\n{''.join(said)}")
        self.port = int(said[-1].rsplit(":", 1)[1].split("/")[0])
        # Whoever does not read stops the server at some point.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(signal.SIGTERM)

    def stop(self, how):
        self.process.send_signal(how)
        self.process.wait()

    async def get(self, path):
        status, _, body, _ = await exchange(self.port, request("GET", path))
        if status != 200:
            raise RuntimeError(f"{path}: {status} {body[:200]}")
        return body

    async def metrics(self):
        """All counters and gauges, summed over their labels, and each ending by its reason."""
        found = {}
        for line in (await self.get("/metrics")).decode().splitlines():
            if line.startswith("#"):
                continue
            name, value = line.rsplit(" ", 1)
            plain = name.split("{")[0].removeprefix("breakers_")
            found[plain] = found.get(plain, 0) + float(value)
            if plain == "request_ended_total":
                reason = name.split('finished_reason="')[1].split('"')[0]
                found[reason] = found.get(reason, 0) + int(value)
        return found

    async def at_rest(self, seconds=60):
        """The metrics once nothing runs or waits, or as they are in the end."""
        until = time.monotonic() + seconds
        while True:
            m = await self.metrics()
            busy = m.get("num_requests_running", 0) + m.get("num_requests_waiting", 0)
            busy += m.get("num_requests_paused", 0)
            if not busy or time.monotonic() > until:
                return m
            await asyncio.sleep(0.05)

    def resident(self):
        """Bytes of memory that the process has."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def request(method, path, body=None, key=KEYS[0], close=True):
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}"]
    if close:
        head.append("Connection: close")
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join(head + ["", ""]).encode() + data


async def exchange(port, data, close_after=None):
    """Status, headers, body and seconds of an answer; None if the socket was closed before it was whole."""
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        try:
            # The server closes the connection after its answer.
            answer = await asyncio.wait_for(reader.read(-1), close_after)
        except asyncio.TimeoutError:
            return None
    finally:
        writer.transport.abort()
    seconds = time.monotonic() - begun
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while body:
            size, _, body = body.partition(b"\r\n")
            pieces.append(body[: int(size, 16)])
            body = body[int(size, 16) + 2 :]
        body = b"".join(pieces)
    return int(lines[0].split()[1]), headers, body, seconds


def summary(body, is_stream):
    """What an answer says, in one form for whole and for streamed ones: by choice its text, why it ended, and its log-
    probabilities; and how many tokens."""
    if not is_stream:
        answers = [json.loads(body)]
    else:
        events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
        if events[-1] != "[DONE]":
            raise ValueError(f"the stream ends with {events[-1]}")
        answers = [json.loads(event) for event in events[:-1]]
    choices, usage = {}, None
    for answer in answers:
        if "error" in answer:
            raise ValueError(answer["error"]["message"])
        usage = answer.get("usage") or usage
        for choice in answer["choices"]:
            said = choices.setdefault(choice["index"], {"text": "", "end": None, "logprobs": []})
            message = choice.get("message") or choice.get("delta") or {}
            said["text"] += choice.get("text") or message.get("content") or ""
            said["end"] = choice["finish_reason"] or said["end"]
            logprobs = choice["logprobs"] or {}
            if "content" in logprobs:
                said["logprobs"] += logprobs["content"] or []
            elif logprobs:
                columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
                said["logprobs"] += zip(*(logprobs[column] for column in columns))
    return json.dumps([sorted(choices.items()), usage["prompt_tokens"], usage["completion_tokens"]])


# ---- the same answers

WORDS = "the keeper of a lighthouse wrote in her log that the storm had passed and the boats were safe".split()
SCHEMAS = [
    {"type": "object", "properties": {"wind": {"type": "integer"}, "calm": {"type": "boolean"}},
     "required": ["wind", "calm"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["north", "south", "east", "west"]}, "minItems": 1, "maxItems": 4},
]


def random_body(rng, model):
    """A request whose answer is determined: greedy, or with a seed."""
    words = lambda n: " ".join(rng.choice(WORDS) for _ in range(n))
    # Beginnings that many have in common, and that end within pages and at their edges.
    number = rng.randrange(4)
    common = random.Random(number)
    beginning = " ".join(common.choice(WORDS) for _ in range([5, 20, 60, 260][number]))
    prompt = f"{beginning} {words(rng.randrange(12))}"
    body = {"model": model, "max_tokens": rng.choice([1, 2, 4, 8, 12])}
    body["temperature"] = rng.choice([0, 0, 0.7, 1])
    if body["temperature"]:
        body |= {"seed": rng.randrange(1 << 32), "top_p": rng.choice([1, 0.95]), "n": rng.choice([1, 1, 1, 2, 4])}
    if rng.random() < 0.2:
        body["stop"] = rng.sample([".", " the", "\n", "boat", "e"], 2)
    if rng.random() < 0.2:
        body |= {"frequency_penalty": rng.choice([-0.5, 1]), "presence_penalty": 0.3}
    kind = rng.random()
    if kind < 0.5:
        body["prompt"] = prompt
        if rng.random() < 0.3:
            body["logprobs"] = 2
        if rng.random() < 0.2:
            body |= {"structured_outputs": {"regex": "(yes|no), [a-z]{3,8}\\."}, "max_tokens": 16}
        return "/v1/completions", body
    body["messages"] = [{"role": "system", "content": beginning}, {"role": "user", "content": words(8)}]
    if kind > 0.85:
        schema = {"name": "answer", "strict": True, "schema": rng.choice(SCHEMAS)}
        body |= {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 20}
    elif rng.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": 2}
    return "/v1/chat/completions", body


async def exact(arguments, failures):
    rng = random.Random(arguments.seed)
    folder = tempfile.mkdtemp()
    keys, prefixes = os.path.join(folder, "keys.toml"), os.path.join(folder, "prefixes")
    with open(keys, "w") as file:
        for key in KEYS:
            file.write(f'[[key]]\ntenant = "{key[7:]}"\nkey = "{key}"\n')
    os.chmod(keys, 0o600)
    common = ["--keys", keys, "--max-waiting", 200]
    # Name, flags, and what must have happened.
    ways = [
        ("1 thread, passes of 1 ms", ["--threads", 1, "--max-pass", 1], ["cached"]),
        ("2 threads, drafts of n-grams", ["--threads", 2, "--draft", "ngram"], ["cached", "drafts and forced tokens"]),
        ("2 threads, little memory", ["--threads", 2, "--max-mb", arguments.max_mb], ["pauses", "evictions"]),
        ("1 thread, little memory, drafts, passes of 10 ms",
         ["--threads", 1, "--draft", "ngram", "--max-mb", arguments.max_mb, "--max-pass", 10, "--max-texts", 12],
         ["pauses", "evictions", "drafts and forced tokens"]),
        ("2 threads, nothing kept, 3 texts at a time, passes of 1 s",
         ["--threads", 2, "--cache-mb", 0, "--max-texts", 3, "--max-pass", 1000], []),
        ("2 threads, beginnings from files", ["--threads", 2, "--prefixes", prefixes], ["cached", "restored"]),
    ]
    counters = {
        "cached": "prompt_tokens_cached_total",
        "pauses": "num_preemptions_total",
        "evictions": "prefix_cache_evictions_total",
        "restored": "prefix_cache_restored_total",
        "drafts and forced tokens": "spec_decode_num_accepted_tokens_total",
    }
    n_distinct = max(50, arguments.requests // 20)
    references, begun = [], time.monotonic()
    with Server(arguments, *common, "--threads", 1, "--max-texts", 1, "--cache-mb", 0) as server:
        model = json.loads(await server.get("/v1/models"))["data"][0]["id"]
        while len(references) < n_distinct:
            path, body = random_body(rng, model)
            answer = await exchange(server.port, request("POST", path, body))
            if answer[0] != 200:
                sys.exit(f"{answer[0]} {answer[2]} for {body}")
            references.append((path, body, summary(answer[2], False)))
        alone = await server.metrics()
        if alone["prompt_tokens_cached_total"]:
            failures.append("the server that should keep nothing has kept something")
    print(f"{n_distinct} requests alone: {time.monotonic() - begun:.1f} s", file=sys.stderr)
    result = {"requests": 0, "distinct": n_distinct, "differ": 0, "closed": 0, "retried": 0, "servers": {}}
    differing = []

    async def client(server, share):
        for _ in range(share):
            await asyncio.sleep(rng.expovariate(1 / arguments.pause))
            path, body, expected = rng.choice(references)
            is_stream, body = rng.random() < 0.5, dict(body)
            if is_stream:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            if rng.random() < 0.3:
                body["service_tier"] = "flex"
            data = request("POST", path, body, rng.choice(KEYS))
            if rng.random() < 0.1:
                result["closed"] += await exchange(server.port, data, rng.uniform(0, 0.3)) is None
            while True:
                answer = await exchange(server.port, data)
                if answer[0] != 429:
                    break
                result["retried"] += 1
                await asyncio.sleep(0.2)
            result["requests"] += 1
            try:
                if answer[0] != 200:
                    raise ValueError(answer[2].decode())
                found = summary(answer[2], is_stream)
            except (ValueError, KeyError) as error:
                found = f"{answer[0]} {error}"
            if found != expected:
                result["differ"] += 1
                differing.append({"path": path, "body": body, "alone": expected, "under load": found})

    for name, flags, needed in ways:
        begun = time.monotonic()
        share = -(-arguments.requests // (len(ways) * arguments.clients))
        parts = [share // 2, share - share // 2] if "restored" in needed else [share]
        for i, part in enumerate(parts):
            server = Server(arguments, *common, *flags)
            await asyncio.gather(*(client(server, part) for _ in range(arguments.clients)))
            m = await server.at_rest()
            if i + 1 < len(parts):
                # What was written stays, whatever becomes of the process.
                await asyncio.sleep(2)
            server.stop(signal.SIGKILL)
        print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
        told = {key: int(m.get(counter, 0)) for key, counter in counters.items()}
        told["rows a pass"] = round(m["forward_rows_total"] / m["forward_passes_total"], 1)
        told["cancelled"] = sum(int(v) for k, v in m.items() if k.startswith("cancelled"))
        result["servers"][name] = told
        failures += [f"{name}: no {need}" for need in needed if not told[need]]
    shutil.rmtree(folder)
    result["schemas, ended by themselves"] = sum(
        "response_format" in body and '"end": "stop"' in expected for _, body, expected in references
    )
    if result["differ"]:
        failures.append(f"{result['differ']} answers differ")
        with open(arguments.out, "w") as file:
            json.dump(differing, file, indent=1)
        print(f"what differs is in {arguments.out}", file=sys.stderr)
    if not result["closed"]:
        failures.append("no socket was closed midway")
    return result


# ---- closed sockets

async def cancel(arguments, failures):
    rng = random.Random(arguments.seed)
    flags = ["--cache-mb", arguments.cache_mb, "--max-waiting", 1000, "--no-keys"]
    with Server(arguments, *flags) as server:
        model = json.loads(await server.get("/v1/models"))["data"][0]["id"]
        baseline = await server.at_rest()
        sent = {"closed": 0, "answered": 0}

        async def client(share):
            for _ in range(share):
                body = {
                    "model": model,
                    # Some are long enough to be closed while they are read.
                    "prompt": f"{rng.random()} " + "The boats were safe again. " * rng.choice([1, 10, 100]),
                    "max_tokens": 200,
                    "n": rng.randint(1, 4),
                    "temperature": 1,
                    "stream": rng.random() < 0.7,
                }
                data = request("POST", "/v1/completions", body)
                answer = await exchange(server.port, data, rng.choice([0, 0.01, 0.1, 1, 3]) * rng.random())
                sent["closed" if answer is None else "answered"] += 1

        async def run(n):
            await asyncio.gather(*(client(-(-n // arguments.clients)) for _ in range(arguments.clients)))
            return await server.at_rest()

        sizes = []
        for _ in range(4):
            m = await run(arguments.requests // 4)
            # What is free is returned every ten seconds.
            await asyncio.sleep(12)
            sizes.append(server.resident())
    reasons = ("cancelled_waiting", "cancelled_prompt", "cancelled")
    result = {**sent, "texts": {reason: int(m.get(reason, 0)) for reason in reasons}}
    for gauge in ("num_requests_running", "num_requests_waiting", "num_requests_paused",
                  "prefix_cache_sequences", "kv_cache_used_bytes"):
        before, after = int(baseline.get(gauge, 0)), int(m.get(gauge, 0))
        result[gauge] = [before, after]
        is_cache = gauge.startswith(("prefix", "kv"))
        if before != after and not (arguments.cache_mb and is_cache):
            failures.append(f"{gauge}: {before} before, {after} afterwards")
    if arguments.cache_mb and m["kv_cache_used_bytes"] > arguments.cache_mb * 1e6:
        failures.append("more is kept than --cache-mb allows")
    if m["requests_accepted_total"] != m["request_ended_total"]:
        failures.append(f"{m['requests_accepted_total']} accepted, {m['request_ended_total']} ended")
    failures += [f"no text ended as {reason}" for reason in reasons if not m.get(reason)]
    # After each quarter, of which the first is there to warm up.
    result["resident_mb"] = [size / 1e6 for size in sizes]
    if sizes[-1] > 1.02 * sizes[0]:
        failures.append(f"the process grew from {sizes[0] / 1e6:.0f} to {sizes[-1] / 1e6:.0f} MB")
    return result


# ---- too many requests

async def overload(arguments, failures):
    rng = random.Random(arguments.seed)
    # What is kept must not hide what else the process takes: it is full before the measured time.
    flags = ["--max-texts", arguments.texts, "--max-waiting", arguments.waiting, "--cache-mb", 50, "--no-keys"]
    serial = iter(range(1 << 60))
    with Server(arguments, *flags) as server:
        model = json.loads(await server.get("/v1/models"))["data"][0]["id"]

        def data():
            body = {"model": model, "prompt": f"{next(serial)}. The keeper of the lighthouse",
                    "max_tokens": arguments.tokens, "temperature": 0}
            return request("POST", "/v1/completions", body)

        async def finished(users, seconds):
            """Texts a second with so many users, of whom each waits for an answer."""
            until, n = time.monotonic() + seconds, 0

            async def user():
                nonlocal n
                while time.monotonic() < until:
                    answer = await exchange(server.port, data())
                    # What ends after the time does not count.
                    n += answer[0] == 200 and time.monotonic() < until
            await asyncio.gather(*(user() for _ in range(users)))
            return n / seconds

        below = {}
        for users in (arguments.texts, arguments.texts + arguments.waiting // 2):
            await finished(users, 2)
            below[users] = await finished(users, arguments.seconds / 4)
        best = max(below.values())
        before = await server.at_rest()
        resident_before = most = server.resident()
        rate, counts = arguments.times * best, {"sent": 0, "ok": 0, "rejected": 0, "closed": 0, "other": 0}
        in_time, rejections, no_retry, pending = 0, [], 0, set()
        begun = time.monotonic()

        async def one(close_after):
            nonlocal in_time, no_retry
            counts["sent"] += 1
            answer = await exchange(server.port, data(), close_after)
            if answer is None:
                counts["closed"] += 1
            elif answer[0] == 200:
                counts["ok"] += 1
                in_time += time.monotonic() < begun + arguments.seconds
            elif answer[0] in (429, 503):
                counts["rejected"] += 1
                rejections.append(1000 * answer[3])
                no_retry += "retry-after" not in answer[1]
            else:
                counts["other"] += 1

        planned, own = begun, time.process_time()
        while (planned := planned + rng.expovariate(rate)) < begun + arguments.seconds:
            await asyncio.sleep(max(0, planned - time.monotonic()))
            # Late enough that the server has read the request.
            close_after = rng.uniform(0.5, 3) if rng.random() < 0.02 else None
            pending.add(task := asyncio.create_task(one(close_after)))
            task.add_done_callback(pending.discard)
            if counts["sent"] % 50 == 0:
                most = max(most, server.resident())
        own = time.process_time() - own
        await asyncio.gather(*pending)
        m = await server.at_rest()
        most = max(most, server.resident())
    goodput = in_time / arguments.seconds
    rejections.sort()
    at = lambda share: rejections[min(len(rejections) - 1, int(share * len(rejections)))] if rejections else None
    grew = lambda name: int(m.get(name, 0) - before.get(name, 0))
    result = {
        "below": {f"{users} users": value for users, value in below.items()},
        "requests_a_second": counts["sent"] / arguments.seconds,
        "goodput": goodput,
        "of_the_best": goodput / best,
        **counts,
        "server": {name: grew(name) for name in
                   ("requests_accepted_total", "request_refused_total", "stop", "length",
                    "cancelled_waiting", "cancelled_prompt", "cancelled", "failed")},
        "rejection_ms": {"p50": at(0.5), "p99": at(0.99), "most": at(1)},
        "resident_mb": [resident_before / 1e6, most / 1e6],
        "client_cpu": own / arguments.seconds,
    }
    s = result["server"]
    for failed, what in [
        (goodput < 0.9 * best, f"{goodput:.1f} texts a second, {best:.1f} without too many"),
        (not rejections, "nothing was rejected"),
        (rejections and at(0.99) >= 5, "rejections take 5 ms or more"),
        (no_retry, f"{no_retry} rejections without retry-after"),
        (counts["sent"] != counts["ok"] + counts["rejected"] + counts["closed"], "not every request has an end"),
        (counts["sent"] != s["requests_accepted_total"] + s["request_refused_total"],
         "the server does not count what was sent"),
        (grew("requests_accepted_total") != grew("request_ended_total"), "accepted texts have not ended"),
        # A client may close its socket when the answer is already on its way.
        (not 0 <= s["stop"] + s["length"] - counts["ok"] <= counts["closed"], "answers are counted otherwise"),
        (not 0 <= s["request_refused_total"] - counts["rejected"] <= counts["closed"],
         "refusals are counted otherwise"),
        (most > resident_before + 64e6, "the process grows by more than 64 MB"),
    ]:
        if failed:
            failures.append(what)
    return result


# ---- versions

async def swap(arguments, failures):
    if not arguments.other:
        sys.exit("swap needs --model and --other, two GGUF files")
    folder = tempfile.mkdtemp()
    models = os.path.join(folder, "models")
    os.mkdir(models)
    files = {"one.gguf": arguments.model, "other.gguf": arguments.other}
    for name, path in files.items():
        shutil.copyfile(path, os.path.join(models, name))
    flags = ["--registry", os.path.join(folder, "registry.db"), "--models-dir", models, "--no-keys"]
    with Server(arguments, *flags, model=False) as server:

        async def post(path, body):
            status, headers, answer, _ = await exchange(server.port, request("POST", path, body))
            if status >= 300:
                sys.exit(f"{path}: {status} {answer.decode()}")
            return headers, json.loads(answer)

        body = lambda i: {"model": "keeper", "prompt": f"{i}. The keeper of the lighthouse", "max_tokens": 24,
                          "temperature": 0}
        versions, expected = {}, {}
        for name in files:
            canary = {"prompt": "The sea is", "max_tokens": 8}
            version = (await post("/admin/versions", {"path": name, "canary": canary}))[1]["name"]
            await post("/admin/models/keeper/deploy", {"version": version})
            versions[name] = version
            for i in range(8):
                headers, answer = await post("/v1/completions", body(i))
                expected[headers["x-breakers-version"], i] = answer["choices"][0]["text"]
        counts = {"answers": 0, "failed": 0, "changed": 0}
        by_version, told, done = {}, [], False

        async def client(i):
            while not done:
                data = body(i) | {"stream": True, "stream_options": {"include_usage": True}}
                status, headers, answer, _ = await exchange(server.port, request("POST", "/v1/completions", data))
                counts["answers"] += 1
                try:
                    if status != 200:
                        raise ValueError(answer.decode())
                    text = json.loads(summary(answer, True))[0][0][1]["text"]
                except ValueError as error:
                    counts["failed"] += 1
                    told.append(str(error))
                    continue
                version = headers["x-breakers-version"]
                by_version[version] = by_version.get(version, 0) + 1
                counts["changed"] += text != expected[version, i]

        clients = [asyncio.create_task(client(i)) for i in range(8)]
        seconds = []
        for round_ in range(arguments.swaps):
            await asyncio.sleep(0.5)
            begun = time.monotonic()
            version = list(versions.values())[round_ % 2]
            await post("/admin/models/keeper/deploy", {"version": version})
            seconds.append(time.monotonic() - begun)
        done = True
        await asyncio.gather(*clients)
    shutil.rmtree(folder)
    result = {"swaps": len(seconds), "longest_swap_s": max(seconds), **counts, "by_version": by_version}
    if len(by_version) < 2:
        failures.append("only one version has answered")
    for count in ("failed", "changed"):
        if counts[count]:
            failures.append(f"{counts[count]} {count}: {told[:2]}")
    return result


# ---- connections

async def idle(arguments, failures):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with Server(arguments, "--no-keys") as server:
        await server.get("/health")
        before = server.resident()
        open_ = []
        for _ in range(arguments.connections):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request("GET", "/health", close=False))
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head:
                failures.append(f"a connection was answered with {head[:80]!r}")
            open_.append((reader, writer))
        grown = server.resident() - before
        await asyncio.sleep(1)
        cpu, begun = server.cpu_seconds(), time.monotonic()
        await asyncio.sleep(arguments.seconds)
        share = (server.cpu_seconds() - cpu) / (time.monotonic() - begun)
        alive = sum(not reader.at_eof() for reader, _ in open_)
        grown = max(grown, server.resident() - before)
        # The server still answers.
        await server.get("/health")
    if grown >= 50e6:
        failures.append(f"{grown / 1e6:.0f} MB")
    if share >= 0.005:
        failures.append(f"{100 * share:.2f} % of a processor at rest")
    return {"connections": len(open_), "still_open": alive, "grown_mb": grown / 1e6, "cpu": share}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the program `breakers`")
    modes = {"exact": exact, "cancel": cancel, "overload": overload, "swap": swap, "idle": idle}
    parser.add_argument("mode", choices=modes)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=500, help="of exact and cancel")
    parser.add_argument("--clients", type=int, default=20, help="at a time, of exact and cancel")
    parser.add_argument("--pause", type=float, default=0.05, help="mean seconds between requests of a client (exact)")
    parser.add_argument("--max-mb", type=int, default=16, help="of the servers with little memory (exact)")
    parser.add_argument("--out", default="soak_serve_differences.json", help="where differences go (exact)")
    parser.add_argument("--cache-mb", type=int, default=0, help="what may be kept (cancel)")
    parser.add_argument("--seconds", type=float, default=20, help="of overload and idle")
    parser.add_argument("--times", type=float, default=10, help="requests against what can be done (overload)")
    parser.add_argument("--texts", type=int, default=8, help="at a time (overload)")
    parser.add_argument("--waiting", type=int, default=16, help="texts that may wait (overload)")
    parser.add_argument("--tokens", type=int, default=64, help="of each text (overload)")
    parser.add_argument("--other", help="the second GGUF file (swap)")
    parser.add_argument("--swaps", type=int, default=12)
    parser.add_argument("--connections", type=int, default=1000)
    arguments = parser.parse_args()
    failures = []
    result = asyncio.run(modes[arguments.mode](arguments, failures))
    print(json.dumps({"mode": arguments.mode, "model": arguments.model, **result, "failures": failures}, indent=1))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
