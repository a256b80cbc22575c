"""mistral.rs as the peer to measure against, through PyPI's `mistralrs`. Prints one JSON object.

    peer_mistralrs.py --model M.gguf --threads N [--streams 8] [--max-tokens 128] [--jobs 47]

Requests come from this process and all run at once, so that nothing is lost to HTTP. Prompts are those of `load_serve.py`, greedy;
one short text comes first and is not counted. --jobs asks short requests one by one, with what its prefix cache keeps.
"""

import argparse
import json
import os
import sys
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--words", type=int, default=1500)
    options = parser.parse_args()
    # Read when the library is loaded.
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    import mistralrs

    folder, name = os.path.split(os.path.abspath(options.model))
    start = time.perf_counter()
    runner = mistralrs.Runner(
        which=mistralrs.Which.GGUF(quantized_model_id=folder, quantized_filename=name),
        max_seqs=options.streams,
        token_source="none",
    )
    answer = {"load_s": time.perf_counter() - start}

    def begin(prompt, n):
        """A text that is being written. A request that is not streamed would keep others out until it has ended."""
        request = mistralrs.ChatCompletionRequest(
            # A text instead of messages is taken as it is, without a template.
            messages=prompt, model="default", max_tokens=n, temperature=0.0, top_k=1, stream=True
        )
        return runner.send_chat_completion_request(request)

    def end(text, n=0):
        """How many tokens it has in the end, if n pieces were taken already."""
        for piece in text:
            n = piece.usage.completion_tokens if piece.usage else n + 1
        return n

    def complete(prompt, n):
        return end(begin(prompt, n))

    complete("Once", 2)
    if options.jobs:
        common = "You answer in the words of a careful captain. " * (options.words // 9)
        for way, beginning in (("own prompts", ""), ("common instructions", common)):
            number = f"{time.time_ns()}"
            start = time.perf_counter()
            for i in range(options.jobs):
                complete(f"{number}. {beginning}Report {i}:", options.max_tokens)
            answer[way] = time.perf_counter() - start
    else:
        number = f"{time.time_ns()}"
        start = time.perf_counter()
        texts = []
        for i in range(options.streams):
            texts.append(begin(f"{number}-{i}. The keeper of the lighthouse", options.max_tokens))
            # Prompts of several texts in one pass fail in version 0.9.5 ("input tensor is not contiguous").
            next(texts[-1])
        tokens = [end(text, 1) for text in texts]
        answer |= {"tok_s": sum(tokens) / (time.perf_counter() - start), "tokens": tokens}
    json.dump(answer, sys.stdout)
    print()


if __name__ == "__main__":
    main()
