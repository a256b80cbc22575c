"""Writes tokenizer_json_cases.json: small tokenizer.json files of each kind, and the ids that Hugging Face gives.

Needs `pip install tokenizers sentencepiece protobuf`. The texts are those of crates/tokenizer/tests/data/tokenizer_cases.json:
    python make_tokenizer_json_cases.py > tokenizer_json_cases.json
"""

import base64
import io
import json
import pathlib
import sys
import tempfile

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = json.loads((pathlib.Path(__file__).parents[3] / "tokenizer/tests/data/tokenizer_cases.json").read_text(encoding="utf-8"))["texts"]
# Texts with the special tokens of the files below, and short ones for the edges.
MORE = [
    "<s>a</s> b <s> </s>c<pad>", "[CLS] a [SEP][MASK] b[PAD]", "<|end|>x <|end|>\n<|begin|> y", "<tool>call</tool> <tool>",
    "  MASK <mask>  x", "a", " a", "a ", "▁", "▁▁a ▁b", "Ａｂｃ ﬁ ½", "\u0301", "\U0001f600",
]
CORPUS = TEXTS * 2 + ["the of and to in is that for it was on are as with his they at be this from have or by one had not"] * 9
GPT2 = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    t.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    t.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False, rstrip=True)])
    t.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    # These must not reach the ids.
    t.enable_truncation(5)
    t.enable_padding(length=64)
    return t


def gpt2():
    t = Tokenizer(models.BPE(end_of_word_suffix="", continuing_subword_prefix=""))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False))
    t.add_special_tokens(["<s>", "</s>", AddedToken("<mask>", lstrip=True, special=True), "<pad>"])
    t.post_processor = processors.RobertaProcessing(
        ("</s>", t.token_to_id("</s>")), ("<s>", t.token_to_id("<s>")), trim_offsets=True, add_prefix_space=True
    )
    return t


def sentence_piece(prepends):
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prepends else space
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    t.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=460, special_tokens=special, limit_alphabet=160, show_progress=False)
    )
    t.add_tokens([f"<0x{byte:02X}>" for byte in range(256)])
    t = with_bytes(t)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if prepends else steps)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


def with_bytes(t):
    """Puts the byte tokens into the model, where training cannot."""
    file = json.loads(t.to_str())
    added = [token for token in file["added_tokens"] if token["content"].startswith("<0x")]
    file["model"]["vocab"].update({token["content"]: token["id"] for token in added})
    file["added_tokens"] = [token for token in file["added_tokens"] if token not in added]
    return Tokenizer.from_str(json.dumps(file))


def unigram():
    """As T5 and XLM-R: SentencePiece's compiled normalization, and its algorithm."""
    rules = {"\uff21": "A", "\uff42": "b", "\ufb01": "fi", "\u00bd": "1\u20442", "\u3000": " ", "\u00a0": " ", "e\u0301": "\u00e9", "\u2026": "..."}
    with tempfile.TemporaryDirectory() as folder:
        table = pathlib.Path(folder) / "rules.tsv"
        table.write_text(
            "".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in rules.items()),
            encoding="utf-8",
        )
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.replace("\0", "") for text in CORPUS), model_writer=out, vocab_size=700, model_type="unigram",
            hard_vocab_limit=False, normalization_rule_tsv=str(table), character_coverage=0.98, minloglevel=2, num_threads=1,
        )
    proto = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
    t = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], 0, False))
    t.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    t.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", t.token_to_id("</s>"))])
    return t


def word_piece():
    """A cased BERT."""
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=False)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, limit_alphabet=200, show_progress=False))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return t


def word_level():
    t = Tokenizer(models.WordLevel(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    t.train_from_iterator(CORPUS, trainers.WordLevelTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    t.add_tokens([AddedToken("Hello", normalized=True, single_word=True)])
    return t


def case(t, text):
    ids = t.encode(text, add_special_tokens=False).ids
    result = {"ids": ids}
    added = t.encode(text).ids
    if added != ids:
        result["added"] = added
    t.encode_special_tokens = True
    plain = t.encode(text, add_special_tokens=False).ids
    t.encode_special_tokens = False
    if plain != ids:
        result["plain"] = plain
    decoded = t.decode(ids, skip_special_tokens=False)
    if decoded != text:
        result["text"] = decoded
    return result


def main():
    makers = {
        "byte_level": byte_level, "gpt2": gpt2, "llama": lambda: sentence_piece(True), "gemma": lambda: sentence_piece(False),
        "unigram": unigram, "word_piece": word_piece, "word_level": word_level,
    }
    result = {"note": f"tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}", "more_texts": MORE, "tokenizers": {}}
    for name, make in makers.items():
        t = make()
        file = json.loads(t.to_str())
        t.no_truncation()
        t.no_padding()
        result["tokenizers"][name] = {"file": file, "cases": [case(t, text) for text in TEXTS + MORE]}
    json.dump(result, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    print()


main()
