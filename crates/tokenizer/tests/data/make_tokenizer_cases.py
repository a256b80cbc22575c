"""Writes tokenizer_cases.json: texts and the token ids that llama.cpp gives for them.

Needs `pip install llama-cpp-python`; the models' files lie in a folder as <name>.gguf:
    python make_tokenizer_cases.py FOLDER > tokenizer_cases.json
"""

import ctypes
import json
import random
import sys

import llama_cpp

MODELS = ["smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m"]

TEXTS = [
    "",
    " ",
    "  ",
    "Hello, world!",
    " Hello  world ",
    "The quick brown fox jumps over the lazy dog. 1234567890",
    # Contractions, in both cases and with other quotes.
    "I'm you're he's she'll we've they'd don't can't it's I'LL YOU'RE HE'S WE'VE THEY'D DON'T 'tis 'S",
    "don’t ‘quoted’ “text” O'Neill rock'n'roll ''s '' ' 'x '1",
    # Numbers.
    "3.14159 1,000,000 0x1F 1e-10 ½ ² ³ ٣٤٥ ௧௨ Ⅷ 五 1st 42nd v1.2.3 12:34:56 2024-02-29 +49 (0)30-12345",
    "1 12 123 1234 12345 123456 1234567 00 000 0000",
    # Emoji: skin tones, joiners, flags, keycaps, variation selectors.
    "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵🇧🇷 1️⃣ #️⃣ ❤️ ❤ ☕️ 🧑🏿‍🚀 🫠 🪿",
    "a😀b😀😀c 😀😀 😀",
    # Scripts.
    "你好，世界！これはテストです。안녕하세요 세계 漢字かな交じり文、𠮷野家",
    "العَرَبِيَّة مرحبا بالعالم ١٢٣ עִבְרִית שלום עולם فارسی‌ها",
    "สวัสดีชาวโลก ภาษาไทย नमस्ते दुनिया हिन्दी বাংলা தமிழ் ქართული հայերեն",
    "Ελληνικά Русский Українська Ёжик Straße ﬁancé ŒUVRE İstanbul ıI ſtraße",
    "Zażółć gęślą jaźń, příliš žluťoučký kůň; Việt Nam đẹp lắm",
    # Combining marks: composed, decomposed, stacked.
    "é e\u0301 ñ n\u0303 Å A\u030a ç c\u0327 Z\u0351\u036b\u0343a\u0321l\u0334g\u0355o\u0321 \u0301 a \u0301b",
    # Spaces and other invisible characters.
    "a\u00a0b\u2003c\u3000d\u200be\u200cf\u200dg\u2060h\ufeffi\u00adj\u202ek\u2028l\u2029m\u0085n\u180eo",
    "\ufeffBOM first",
    "a\x00b\x00\x00 \x00c \x01\x02\x1f\x7f\x80\x9f",
    "tabs\tand\t\tmore\t\t\tthan\t \t that",
    "   three    four     five      \n\n\n\n x \n \n\n   \n  y\n",
    "\n", "\n\n", "\n\n\n", " \n", "\n ", "\r\n", "\r\n\r\n", "\r", "\t", "\t\t\t", "\x0b\x0c",
    "x" + " " * 40 + "y" + "\n" * 35 + "z" + "\t" * 33 + "." + " \n" * 5,
    "line one\r\nline two\r\n\r\n  indented\r\n\tand\rold",
    # Code.
    "def fib(n: int) -> int:\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n\n\nprint([fib(i) for i in range(10)])  # 0 1 1 2\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\t// dot\n}\nreturn sum != 0 ? x->y : *p++ ^ ~q | r && s;",
    "fn main() {\r\n    let s = \"héllo\\n\";\r\n    println!(\"{s:?} {}\", 0b1010_u8);\r\n}\r\n",
    "<!DOCTYPE html>\n<div class=\"a b\"><p>text &amp; more</p><br/></div><table><tr><td>1</td></tr></table>",
    "SELECT * FROM `t` WHERE a <> 'b''c' AND d >= 1.5e3; -- comment\n{\"k\": [1, null, true], \"s\": \"\\u00e9\"}",
    "https://example.com/a_b/c-d?e=f&g=%20#h user.name+tag@example.co.uk C:\\path\\to\\file $HOME/.config/*.toml",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case a.b.c::d->e __init__ $x @y #z",
    "!!! ??? ... --- *** ### ,,, ;;; ((())) [[]] {{}} <<>> == != <= >= => -> :: // /* */ && || ++ -- ^^ ~~ ``",
    # Long words.
    "a" * 300,
    "ab" * 150,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft pneumonoultramicroscopicsilicovolcanoconiosis",
    "=" * 100 + "-" * 100 + "~" * 70 + "#" * 70,
    "啊" * 100 + "!" * 50 + "é" * 50,
    "\u0915\u094d\u0937" * 30,
    # Control tokens and what looks like them.
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|im_end|><|im_start|> <|im_end|>x<|im_end|>\n",
    "<|fim_prefix|>def f():<|fim_suffix|>\n    return 1<|fim_middle|><|file_sep|><|repo_name|>r<repo_name><reponame>",
    "<tool_call>{\"name\": \"f\"}</tool_call><|box_start|><|object_ref_end|> <|im_start |> <|IM_START|>",
    "<bos>text<eos> <pad><unk><mask> <start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "<unused0><unused99> [multimodal] <start_of_image><end_of_image> <h1>T</h1> <strong>b</strong> </s> <s>",
    "<0x0A><0x41> ▁ ▁▁ a▁b ▁x",
    "<|im_start|<|im_end|>> <<bos>> <|im_start|><|im_start|>",
    "<gh_stars><jupyter_code><issue_start><empty_output><filename>a.py",
]

CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", "<eos>", "<unk>", "<pad>", "<tool_call>", "<|fim_middle|>",
    "<start_of_turn>", "<end_of_turn>", "<h1>", "</s>", "<unused7>", "<repo_name>", "<|file_sep|>", "▁", "Ġ", "<0x0A>",
]
WORDS = [
    "the", "The", "THE", "'s", "'LL", "don't", "hello", "world", "int", "return", "foo_bar", "naïve", "Straße",
    "世界", "こんにちは", "안녕", "мир", "שלום", "مرحبا", "ไทย", "हिन्दी", "😀", "👩‍👧", "🇩🇪", "é", "e\u0301", "ﬁ", "ⅷ", "½", "٣",
    "123", "7", "3.14", "(", ")", "{", "}", "=>", "!=", "...", ",", ".", "'", '"', "\\", "/", "\u200b", "\u00a0", "\u3000",
    "\ufeff", "\x00", "\x04", "\x7f", "\u0085", "\u2028",
]
SPACES = ["", "", "", " ", " ", " ", "  ", "    ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", " \n", "\n "]


def fuzz(rng, n_pieces):
    """Random text: words, spaces, control tokens, characters from all of Unicode."""
    pieces = []
    for _ in range(n_pieces):
        kind = rng.random()
        if kind < 0.45:
            pieces.append(rng.choice(WORDS))
        elif kind < 0.75:
            pieces.append(rng.choice(SPACES))
        elif kind < 0.80:
            pieces.append(rng.choice(CONTROL))
        elif kind < 0.88:
            pieces.append("".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.randrange(1, 8))))
        elif kind < 0.95:
            pieces.append(chr(rng.choice([rng.randrange(0x80, 0x3000), rng.randrange(0x3000, 0xD800)])))
        else:
            pieces.append(chr(rng.choice([rng.randrange(0xE000, 0x10000), rng.randrange(0x10000, 0x110000)])))
    return "".join(pieces)


class Peer:
    """llama.cpp's tokenizer and detokenizer."""

    def __init__(self, path):
        self.llama = llama_cpp.Llama(path, vocab_only=True, verbose=False)
        self.vocab = llama_cpp.llama_model_get_vocab(self.llama.model)

    def encode(self, text, add_special, parse_special):
        return self.llama.tokenize(text.encode(), add_bos=add_special, special=parse_special)

    def decode(self, ids, skip_special):
        ids = (ctypes.c_int32 * len(ids))(*ids)
        buffer = ctypes.create_string_buffer(1 << 20)
        n = llama_cpp.llama_detokenize(self.vocab, ids, len(ids), buffer, len(buffer), False, not skip_special)
        assert n >= 0
        return buffer.raw[:n]

    def end_tokens(self):
        n = llama_cpp.llama_vocab_n_tokens(self.vocab)
        return [i for i in range(n) if llama_cpp.llama_vocab_is_eog(self.vocab, i)]

    def control_tokens(self):
        n = llama_cpp.llama_vocab_n_tokens(self.vocab)
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        return [i for i in range(n) if llama_cpp.llama_vocab_get_attr(self.vocab, i) & special]


def main():
    folder = sys.argv[1]
    rng = random.Random(20)
    texts = TEXTS + [fuzz(rng, 24) for _ in range(40)]
    models = {}
    for name in MODELS:
        peer = Peer(f"{folder}/{name}.gguf")
        cases = []
        for text in texts:
            plain = peer.encode(text, False, False)
            # Only what differs from the plain ids is written down.
            case = {"ids": plain}
            special = peer.encode(text, True, False)
            if special != plain:
                case["added"] = special
            parsed = peer.encode(text, False, True)
            if parsed != plain:
                case["parsed"] = parsed
            for key, ids, skip in [("text", parsed, True), ("text_with_special", parsed, False)]:
                decoded = peer.decode(ids, skip)
                if decoded != text.encode():
                    case[key] = decoded.decode(errors="replace")
            cases.append(case)
        models[name] = {"end_tokens": peer.end_tokens(), "cases": cases}
    json.dump({"texts": texts, "models": models}, sys.stdout, ensure_ascii=True, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
