"""Writes merges.json: what the tokenizers library makes of BPE over pieces, in many forms.

    python tests/golden/make_merges.py

`base` is a tokenizer.json of 400 pieces with bytes and merges in an order that no sentencepiece
model has; each of `forms` changes parts of it, and has the ids of all `texts`. Special tokens in
them are text (`encode_special_tokens`). `words` are the texts, cut by the four patterns that
llama.cpp applies where a GGUF file names no pre-tokenizer.
"""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "The keeper climbs the stairs each evening and lights the lamp.",
    "Hello, keeper! What is the light? It was lit in 1899, they say.",
    "Ships pass by the rocks;    nobody on board\n\nknows\t\this name, café or naïve.",
    "Ein Leuchtturm steht am Meer. 灯塔在海边。",
]
# ruff: noqa: E501
TEXTS = ["", " ", "Hello", " Hello", "Hello, keeper!", "the  lamp\n\n the\tlamp ", "café", "e\u0301",
         "灯塔 😀", "\x00\x01", "<s></s><unk>", "<0x41>", "▁the▁lamp", "▁▁ a", "1899 12345", "a\r\nb",
         "\ufeffx", "the" * 20, "x<h>the<h> y", "the stairs, stairs and lampthe", "ﬁ ① \u3000the",
         "a \t\n <i>  b", "'s they're`` $5+$6=~ ^ ²³45 \u00a0\u2028x…«»", "灯 the 😀😀 lamp é ñ"]  # fmt: skip
TEXTS += [c * n + end for c in " \n\t" for n in (2, 3, 7, 31, 40) for end in ("", "a")]
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
           r"|\s+(?!\S)", r"\p{N}+", "[0-9][0-9][0-9]")  # fmt: skip
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPENDED = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
         "invert": False}  # fmt: skip
ORDINARY = [("<h>", {}), ("the", {"normalized": True, "single_word": True}), ("\n\n", {}),
            ("stairs", {"normalized": True}), ("<i>", {"lstrip": True, "rstrip": True}),
            ("  ", {}), ("▁▁", {})]  # fmt: skip


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def base():
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = sorted(set("".join(SENTENCES)) - {" ", "灯", "ï"} | {"▁"})
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=special, show_progress=False,
                                  initial_alphabet=alphabet, limit_alphabet=len(alphabet))  # fmt: skip
    made.train_from_iterator(SENTENCES * 3, trainer)
    document = json.loads(made.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    random.Random(3).shuffle(document["model"]["merges"])
    return document


def forms(document):
    """Name -> the parts that are other than those of `base`."""
    model = document["model"]
    size = len(model["vocab"])
    added = list(document["added_tokens"])
    for text, flags in ORDINARY:
        i = model["vocab"].get(text, size)
        size += i == size
        added.append({"id": i, "content": text, "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": False} | flags)  # fmt: skip
    vocab = {text: i for text, i in model["vocab"].items() if not text.startswith("<0x")}
    bare = dict(zip(vocab, range(len(vocab)), strict=True))
    found = {"prepended": {"normalizer": PREPENDED, "pre_tokenizer": None},
             "gemma": {"normalizer": REPLACE, "pre_tokenizer": SPLIT}}  # fmt: skip
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            found[f"{scheme}, {split}"] = {"pre_tokenizer": metaspace(scheme, split)}
    for form in ("NFC", "NFKC"):
        steps = [{"type": form}, {"type": "Replace", "pattern": {"String": "lamp"},
                                  "content": "light"}, REPLACE]  # fmt: skip
        found[form] = {"normalizer": {"type": "Sequence", "normalizers": steps}}
    found |= {f"{name}, added": parts | {"added_tokens": added} for name, parts in found.items()}
    found["whole words"] = {"pre_tokenizer": metaspace("always", True),
                            "model": {"ignore_merges": True}}  # fmt: skip
    some = dict(bare) | {f"<0x{b:02X}>": len(bare) + n
                                                    for n, b in enumerate(range(0x80, 0x100))}  # fmt: skip
    for fuse in (True, False):
        # A character of which a byte is missing is unknown, beside others that are bytes.
        some.pop("<0x81>", None)
        for name, words, fallback in (("bare", bare, False), ("some bytes", some, True)):
            words = {text: i for i, text in enumerate(words)}
            found[f"{name}, {fuse}"] = {"pre_tokenizer": metaspace("first", True), "model": {
                "vocab": words, "byte_fallback": fallback, "fuse_unk": fuse}}  # fmt: skip
    return found


def changed(document, parts):
    return document | parts | {"model": document["model"] | parts.get("model", {})}


def main():
    out, document = Path(__file__).with_name("merges.json"), base()
    rows = []
    for name, parts in forms(document).items():
        made = Tokenizer.from_str(json.dumps(changed(document, parts)))
        made.encode_special_tokens = True
        ids = [made.encode(text, add_special_tokens=False).ids for text in TEXTS]
        rows.append({"name": name, "parts": parts, "ids": ids})
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in DEFAULT]
    cut = pre_tokenizers.Sequence(steps).pre_tokenize_str
    golden = {"version": tokenizers.__version__, "base": document, "texts": TEXTS, "forms": rows,
              "words": [[word for word, _ in cut(text)] for text in TEXTS]}  # fmt: skip
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, len(rows))


if __name__ == "__main__":
    main()
