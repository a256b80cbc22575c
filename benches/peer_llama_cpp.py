"""llama.cpp as the peer to measure against, through PyPI's `llama-cpp-python` (and `numpy`).

Each command prints one JSON object. `cargo xtask bench` and `cargo xtask exact` call this and compare.

    peer_llama_cpp.py speed      --model M.gguf --ids-file IDS.json --threads N [--flash-attention]
    peer_llama_cpp.py exactness  --model M.gguf --prompts P.json --max-tokens N
    peer_llama_cpp.py tokens     --model M.gguf --cases C.json
    peer_llama_cpp.py perplexity --model M.gguf --file TEXT --context N
    peer_llama_cpp.py streams    --model M.gguf --threads N [--sequences 8] [--max-tokens 128] [--flash-attention]
    peer_llama_cpp.py jobs       --model M.gguf --threads N [--jobs 47] [--words 1500] [--flash-attention]

Measured as favorably as llama.cpp can be used: the same number of threads for prompts and for single tokens,
logits for the last token alone, one untimed pass first, arg-max by numpy rather than by a sampler chain. `streams`
decodes several sequences in one pass, a row of each; `jobs` asks one by one, and keeps what a prompt has in common with
the one before. Both have the prompts of `load_serve.py`; `load_peers.py` runs them in turns with a server.
"""

import argparse
import json
import sys
import time

import llama_cpp
import numpy as np


class Peer:
    """A model in llama.cpp, driven through its C interface."""

    def __init__(self, path, threads, n_context, flash_attention=False, n_batch=512, n_sequences=1):
        start = time.perf_counter()
        self.llama = llama_cpp.Llama(
            model_path=path,
            n_ctx=n_context,
            n_batch=n_batch,
            n_ubatch=n_batch,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=False,
            flash_attn=flash_attention,
            verbose=False,
        )
        self.own_context = None
        self.context = self.llama._ctx.ctx
        if n_sequences > 1:
            # The class has one sequence; its settings serve for a context with more.
            settings = self.llama.context_params
            settings.n_seq_max = n_sequences
            settings.n_ctx = n_context * n_sequences
            settings.n_batch = settings.n_ubatch = n_batch
            settings.kv_unified = False
            self.own_context = llama_cpp.llama_init_from_model(self.llama._model.model, settings)
            if not self.own_context:
                sys.exit(f"no context for {n_sequences} sequences")
            self.context = self.own_context
        self.load_s = time.perf_counter() - start
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.llama._model.model)
        self.n_vocab = self.llama.n_vocab()

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def feed(self, ids):
        """Extends the sequence; logits are computed for the last token."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if status != 0:
            sys.exit(f"llama_decode failed: {status}")

    def forward(self, rows):
        """A pass over rows of a token, its position, its sequence, and whether its logits are wanted."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            sys.exit(f"llama_decode failed: {status}")

    def read(self, prompts, n_batch=512):
        """Reads a prompt for each sequence and returns the first token of each answer."""
        rows, tokens = [], [None] * len(prompts)

        def pass_over():
            self.forward(rows)
            for i, (_, _, sequence, wanted) in enumerate(rows):
                if wanted:
                    tokens[sequence] = int(self.logits(i).argmax())
            rows.clear()

        for sequence, ids in enumerate(prompts):
            for position, token in enumerate(ids):
                rows.append((token, position, sequence, position + 1 == len(ids)))
                if len(rows) == n_batch:
                    pass_over()
        if rows:
            pass_over()
        return tokens

    def logits(self, row=-1):
        """The logits of a row, a view that the next pass overwrites."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def tokenize(self, text, add_special, parse_special):
        data = text.encode()
        room = len(data) + 16
        buffer = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(
            self.vocabulary, data, len(data), buffer, room, add_special, parse_special
        )
        if n < 0:
            sys.exit(f"llama_tokenize needs {-n} places, has {room}")
        return list(buffer[:n])

    def ends(self, token):
        return llama_cpp.llama_vocab_is_eog(self.vocabulary, token)


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max()
    return wide - np.log(np.exp(wide).sum())


def speed(options):
    with open(options.ids_file) as file:
        prompt = json.load(file)["prompt_ids"]
    n_context = len(prompt) + options.max_tokens + 8
    peer = Peer(options.model, options.threads, n_context, options.flash_attention, len(prompt))
    peer.feed(prompt)
    peer.feed([int(peer.logits().argmax())])
    peer.clear()

    start = time.perf_counter()
    peer.feed(prompt)
    token = int(peer.logits().argmax())
    prefilled = time.perf_counter()
    for _ in range(options.max_tokens):
        peer.feed([token])
        token = int(peer.logits().argmax())
    end = time.perf_counter()
    return {
        "prefill_tok_s": len(prompt) / (prefilled - start),
        "decode_tok_s": options.max_tokens / (end - prefilled),
        "load_s": peer.load_s,
    }


def streams(options):
    """Texts that are written together, a row of each in every pass. Prompts count, as for a server."""
    n = options.sequences
    peer = Peer(options.model, options.threads, options.context, options.flash_attention, 512, n)
    number = f"{time.time_ns()}"
    prompts = [peer.tokenize(f"{number}-{i}. The keeper of the lighthouse", True, False) for i in range(n)]
    if max(map(len, prompts)) + options.max_tokens > options.context:
        sys.exit("the texts do not fit")

    def write(n_tokens):
        peer.clear()
        start = time.perf_counter()
        tokens = peer.read(prompts)
        for step in range(n_tokens - 1):
            peer.forward([(token, len(prompts[i]) + step, i, True) for i, token in enumerate(tokens)])
            # What ends before would be replaced by another text: the others go on.
            tokens = [int(peer.logits(i).argmax()) for i in range(n)]
        return n * n_tokens / (time.perf_counter() - start)

    write(4)
    return {"sequences": n, "tok_s": write(options.max_tokens)}


def jobs(options):
    """Short requests one by one. What a prompt has in common with the one before is not read again."""
    common = "You answer in the words of a careful captain. " * (options.words // 9)
    answer = {"jobs": options.jobs}
    for name, beginning in (("own prompts", ""), ("common instructions", common)):
        number = f"{time.time_ns()}"
        texts = [f"{number}. {beginning}Report {i}:" for i in range(options.jobs)]
        longest = len(max(texts, key=len)) + options.max_tokens
        peer = Peer(options.model, options.threads, longest, options.flash_attention)
        memory = llama_cpp.llama_get_memory(peer.context)
        peer.feed([0])
        peer.clear()
        kept, n_tokens = [], 0
        start = time.perf_counter()
        for text in texts:
            ids = peer.tokenize(text, True, False)
            # As llama.cpp's server does it: at least one token is read.
            same = 0
            while same < min(len(kept), len(ids) - 1) and kept[same] == ids[same]:
                same += 1
            if not llama_cpp.llama_memory_seq_rm(memory, 0, same, -1):
                same = 0
                peer.clear()
            for first in range(same, len(ids), 512):
                peer.feed(ids[first : min(first + 512, len(ids))])
            kept = ids
            for step in range(options.max_tokens):
                token = int(peer.logits().argmax())
                n_tokens += 1
                if peer.ends(token) or step + 1 == options.max_tokens:
                    break
                peer.feed([token])
        answer[f"tokens, {name}"] = n_tokens
        answer[name] = time.perf_counter() - start
    return answer


def exactness(options):
    with open(options.prompts) as file:
        prompts = json.load(file)
    peer = Peer(options.model, options.threads, options.context, options.flash_attention)
    cases = []
    for prompt in prompts:
        ids = peer.tokenize(prompt, True, True)
        if len(ids) + options.max_tokens > options.context:
            sys.exit(f"a prompt of {len(ids)} tokens does not fit a context of {options.context}")
        peer.clear()
        for first in range(0, len(ids), 512):
            peer.feed(ids[first : first + 512])
        output, steps = [], []
        for _ in range(options.max_tokens):
            logprobs = log_softmax(peer.logits())
            best = np.argpartition(-logprobs, 5)[:5]
            best = sorted((int(i) for i in best), key=lambda i: (-logprobs[i], i))
            token = best[0]
            output.append(token)
            steps.append({"id": token, "top": [[i, float(logprobs[i])] for i in best]})
            if peer.ends(token):
                break
            peer.feed([token])
        cases.append({"prompt_ids": ids, "output_ids": output, "steps": steps})
    return {"cases": cases}


def tokens(options):
    with open(options.cases) as file:
        cases = json.load(file)
    peer = Peer(options.model, 1, 64)
    for case in cases:
        case["ids"] = peer.tokenize(case["text"], case["add_special"], case["parse_special"])
    return {"cases": cases}


def perplexity(options):
    """The protocol of llama.cpp's own `perplexity` program."""
    n = options.context
    with open(options.file, encoding="utf-8") as file:
        text = file.read()
    peer = Peer(options.model, options.threads, n, options.flash_attention, n)
    ids = peer.tokenize(text, True, False)
    add_bos = llama_cpp.llama_vocab_get_add_bos(peer.vocabulary)
    bos = llama_cpp.llama_vocab_bos(peer.vocabulary)
    batch = llama_cpp.llama_batch_init(n, 0, 1)
    total, counted = 0.0, 0
    start = time.perf_counter()
    for window in range(len(ids) // n):
        row = ids[window * n : (window + 1) * n]
        inputs = [bos, *row[1:]] if add_bos else row
        batch.n_tokens = n
        for i, token in enumerate(inputs):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= n // 2
        peer.clear()
        status = llama_cpp.llama_decode(peer.context, batch)
        if status != 0:
            sys.exit(f"llama_decode failed: {status}")
        for i in range(n // 2, n - 1):
            total -= log_softmax(peer.logits(i))[row[i + 1]]
            counted += 1
    seconds = time.perf_counter() - start
    llama_cpp.llama_batch_free(batch)
    if counted == 0:
        sys.exit(f"{len(ids)} tokens of text do not fill a window of {n}")
    nll = total / counted
    return {
        "perplexity": float(np.exp(nll)),
        "nll": float(nll),
        "n_tokens": counted,
        "tok_s": len(ids) // n * n / seconds,
    }


def main():
    parser = argparse.ArgumentParser(description="llama.cpp as the peer, one JSON object on standard output")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ["speed", "exactness", "tokens", "perplexity", "streams", "jobs"]:
        command = commands.add_parser(name)
        command.add_argument("--model", required=True)
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--flash-attention", action="store_true")
        command.add_argument("--context", type=int, default=512 if name == "perplexity" else 1024)
        if name == "speed":
            command.add_argument("--ids-file", required=True)
            command.add_argument("--max-tokens", type=int, default=128)
        elif name == "streams":
            command.add_argument("--sequences", type=int, default=8)
            command.add_argument("--max-tokens", type=int, default=128)
        elif name == "jobs":
            command.add_argument("--jobs", type=int, default=47)
            command.add_argument("--words", type=int, default=1500)
            command.add_argument("--max-tokens", type=int, default=32)
        elif name == "exactness":
            command.add_argument("--prompts", required=True)
            command.add_argument("--max-tokens", type=int, default=64)
        elif name == "tokens":
            command.add_argument("--cases", required=True)
        else:
            command.add_argument("--file", required=True)
    options = parser.parse_args()
    functions = {"speed": speed, "exactness": exactness, "tokens": tokens, "perplexity": perplexity,
                 "streams": streams, "jobs": jobs}
    answer = functions[options.command](options)
    answer["peer"] = f"llama-cpp-python {llama_cpp.__version__}"
    json.dump(answer, sys.stdout)
    print()


if __name__ == "__main__":
    main()
