"""Writes minilm_cases.json: texts, their token ids and their vectors as sentence-transformers gives them.

Needs `pip install sentence-transformers`; FOLDER holds all-MiniLM-L6-v2 as `cargo xtask fetch minilm` leaves it:
    python make_minilm_cases.py FOLDER > minilm_cases.json
"""

import json
import sys

import sentence_transformers
import tokenizers
import torch

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    "Ça coûte 25 € à l'aéroport — naïve façade, Straße, İstanbul, Zażółć gęślą jaźń.",
    "你好，世界！これはテストです。안녕하세요 👩‍👩‍👧‍👦 😀 👍🏽 ١٢٣ नमस्ते",
    "def fib(n: int) -> int:\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n\n\nprint([fib(i) for i in range(10)])",
    # More than 256 tokens: the rest does not count.
    " ".join(f"Sentence {i} of a long report says that machine {i * 37 % 101} ran for {i * 13 % 60} minutes." for i in range(40)),
    "[CLS] spelled [SEP] in [MASK] the text [PAD] [UNK] ##ing",
    "\t tabs\u00a0and\u3000spaces \r\n\x00\u200b\ufeff e\u0301 \u0130 " + "a" * 120 + " pneumonoultramicroscopicsilicovolcanoconiosis",
]


def main():
    torch.set_num_threads(1)
    model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
    tokenizer = tokenizers.Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cases = []
    for text in TEXTS:
        # One text at a time: in a batch the padding moves the last digits.
        vector = model.encode([text], convert_to_numpy=True)[0]
        cases.append({"text": text, "ids": tokenizer.encode(text).ids, "vector": [float(f"{x:.7g}") for x in vector]})
    result = {
        "note": f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__} on the CPU, "
        f"tokenizers {tokenizers.__version__}; model all-MiniLM-L6-v2, max_seq_length {model.max_seq_length}",
        "max_tokens": model.max_seq_length,
        "cases": cases,
    }
    json.dump(result, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    print()


main()
