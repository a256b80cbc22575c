"""Engines for structured output as peers to measure against, from PyPI: llguidance, outlines-core.

    peer_structured.py --schemas S.jsonl --vocabulary V.json [--engines llguidance,outlines-core] [--limit SECONDS]

A line of the schemas is {name, schema, tests: [{valid, data}]}. The vocabulary is {tokens: [hex], controls: [id], ends: [id]}.
Each instance is written as compact JSON and cut into the longest tokens; a mask is made before each. Prints one JSON line for
each engine: counts and times in microseconds. A schema that takes longer than the limit counts as refused, as does one for
which an engine fails. Progress goes to standard error.
"""

import argparse
import json
import multiprocessing
import sys
import time


class Vocabulary:
    """Tokens by id, and greedy cutting of texts."""

    def __init__(self, path):
        raw = json.load(open(path))
        self.tokens = [bytes.fromhex(token) for token in raw["tokens"]]
        self.controls = set(raw["controls"])
        self.ends = raw["ends"]
        self.ids = {}
        for i, token in enumerate(self.tokens):
            if token and i not in self.controls and i not in self.ends:
                self.ids.setdefault(token, i)
        self.longest = min(32, max(map(len, self.ids)))

    def cut(self, text):
        found, at = [], 0
        while at < len(text):
            for n in range(min(self.longest, len(text) - at), 0, -1):
                token = self.ids.get(text[at : at + n])
                if token is not None:
                    found.append(token)
                    at += n
                    break
            else:
                raise ValueError("a byte that is no token")
        return found


class Llguidance:
    def __init__(self, vocabulary):
        import llguidance

        self.package, outer = llguidance, vocabulary

        class Wrapper:
            tokens = [token or b"\xff[%d]" % i for i, token in enumerate(vocabulary.tokens)]
            special_token_ids = sorted(vocabulary.controls | set(vocabulary.ends))
            eos_token_id = vocabulary.ends[0]
            bos_token_id = None

            def __call__(self, text):
                return outer.cut(text if isinstance(text, bytes) else text.encode())

        for i in Wrapper.special_token_ids:
            Wrapper.tokens[i] = b"\xff" + Wrapper.tokens[i].lstrip(b"\xff")
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapper()))

    def compile(self, schema):
        grammar = self.package.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        error = self.package.LLMatcher.validate_grammar(grammar, self.tokenizer)
        if error:
            raise ValueError(error)
        return grammar

    def start(self, grammar):
        return self.package.LLMatcher(self.tokenizer, grammar)

    def mask(self, matcher):
        matcher.compute_bitmask()

    def advance(self, matcher, token):
        return matcher.try_consume_tokens([token]) == 1

    def may_end(self, matcher):
        return matcher.is_accepting()


class Outlines:
    def __init__(self, vocabulary):
        import outlines_core

        self.package = outlines_core
        ids = {}
        for token, i in vocabulary.ids.items():
            ids.setdefault(token, []).append(i)
        self.vocabulary = outlines_core.Vocabulary(vocabulary.ends[0], ids)

    def compile(self, schema):
        from outlines_core.json_schema import build_regex_from_schema

        return self.package.Index(build_regex_from_schema(schema, ""), self.vocabulary)

    def start(self, index):
        return self.package.Guide(index)

    def mask(self, guide):
        guide.get_tokens()

    def advance(self, guide, token):
        if token not in guide.get_tokens():
            return False
        guide.advance(token)
        return True

    def may_end(self, guide):
        return guide.is_finished()


ENGINES = {"llguidance": Llguidance, "outlines-core": Outlines}


def work(name, path, tasks, results):
    vocabulary = Vocabulary(path)
    engine = ENGINES[name](vocabulary)
    results.put(None)
    while True:
        case = tasks.get()
        if case is None:
            return
        outcome = {"refused": False, "accepted": 0, "rejected": 0, "masks": [], "first": 0.0}
        try:
            start = time.perf_counter()
            grammar = engine.compile(json.dumps(case["schema"]))
            engine.mask(engine.start(grammar))
            outcome["first"] = time.perf_counter() - start
            for test in case["tests"]:
                text = json.dumps(test["data"], separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
                state, ok = engine.start(grammar), True
                for token in vocabulary.cut(text):
                    start = time.perf_counter()
                    engine.mask(state)
                    outcome["masks"].append(time.perf_counter() - start)
                    ok = engine.advance(state, token)
                    if not ok:
                        break
                ok = ok and engine.may_end(state)
                outcome["accepted"] += ok and not test["valid"]
                outcome["rejected"] += test["valid"] and not ok
        except BaseException:
            outcome = {"refused": True}
        results.put(outcome)


def measure(name, path, cases, limit):
    worker, outcomes = None, []
    for i, case in enumerate(cases):
        if worker is None:
            tasks, results = multiprocessing.Queue(), multiprocessing.Queue()
            worker = multiprocessing.Process(target=work, args=(name, path, tasks, results), daemon=True)
            worker.start()
            results.get(timeout=120)
        tasks.put(case)
        try:
            outcomes.append(results.get(timeout=limit))
        except Exception:
            outcomes.append({"refused": True})
            worker.kill()
            worker = None
        if i % 100 == 99:
            print(f"{name}: {i + 1} of {len(cases)} schemas", file=sys.stderr)
    if worker is not None:
        worker.kill()
    done = [outcome for outcome in outcomes if not outcome["refused"]]
    masks = sorted(time for outcome in done for time in outcome["masks"]) or [0.0]
    firsts = sorted(outcome["first"] for outcome in done) or [0.0]
    part = lambda times, share: times[min(len(times) - 1, int(len(times) * share))] * 1e6
    return {
        "engine": name,
        "schemas": len(cases),
        "compiled": len(done),
        "refused": len(outcomes) - len(done),
        "wrong_accepted": sum(outcome["accepted"] for outcome in done),
        "wrong_refused": sum(outcome["rejected"] for outcome in done),
        "mask_mean_us": sum(masks) / len(masks) * 1e6,
        "mask_p99_us": part(masks, 0.99),
        "mask_p99_9_us": part(masks, 0.999),
        "first_mask_p50_us": part(firsts, 0.5),
        "first_mask_p99_us": part(firsts, 0.99),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--limit", type=float, default=10.0)
    options = parser.parse_args()
    cases = [json.loads(line) for line in open(options.schemas) if line.strip()]
    for name in options.engines.split(","):
        print(json.dumps(measure(name, options.vocabulary, cases, options.limit)), flush=True)


if __name__ == "__main__":
    main()
