"""Make wordpiece.json: a small WordPiece vocabulary and what the tokenizers library makes of texts.

    python tests/golden/make_wordpiece.py

Runs in the environment of benchmarks/peers/hf.txt; minift is not imported. For each of `settings`
(lower case, accents, CJK) the same texts: `ids` without [CLS] and [SEP], `decoded`, and one pair
with its token types.
"""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = "the a film movie un ##aff ##able in ##de ##ed cafe café naive NAIVE good Bad ##ness it is"
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789éßœσς電影のи"
FIXED = [
    "",
    " ",
    "Unaffable, isn't it?",
    "  the   CAFÉ\tis\ngood . ",
    "[CLS] and [SEP] and [MASK] are text [unk]",
    "naïve NAÏVE nai\u0308ve",
    "電影は good映画",
    "ΣΑΣ Straße İstanbul ǅ",
    "a\u200bb\u00adc\u2028d\u2029e\u00a0f\u3000g\x85h\x00i\ufffdj\x0bk\x0cl",
    "x" * 100 + " " + "x" * 101,
    "¡hola! «oui» — 50 % … 3.14 $ £",
    "the movie's n't 'm 's do not 've 're ?",
    "👩‍👩‍👧 🇩🇪 👍🏽",
    "\u166d \u1734 \u061d \u0d00 a\u0b55b \u08e2 \u10ead",
]


def texts():
    chosen, pools = random.Random(7), [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF)]
    pools += [
        (0x900, 0xD7F),
        (0x2000, 0x206F),
        (0x3000, 0x30FF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
    ]
    pools += [(0x1F300, 0x1F64F), (0x20000, 0x2A6FF), (0, 0x1F), (0x7F, 0xA0), (0x10D00, 0x11FFF)]
    found = list(FIXED)
    for _ in range(250):
        found.append(
            "".join(
                chr(chosen.randint(*chosen.choice(pools)))
                if chosen.random() < 0.4
                else chosen.choice("abAB  .é'電the")
                for _ in range(chosen.randint(1, 24))
            )
        )
    return found


def main():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [w for w in dict.fromkeys(WORDS.split()) if w not in tokens]
    tokens += list(SIGNS + LETTERS) + ["##" + c for c in LETTERS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    found = {"versions": {"tokenizers": tokenizers.__version__}, "texts": texts(), "settings": []}
    for lower, accents, cjk in ((True, None, True), (False, None, False), (False, True, True)):
        tokenizer = Tokenizer(
            models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
        )
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=cjk, strip_accents=accents, lowercase=lower
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
        )
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [
            {"id": i, "content": tokens[i], "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for i in range(5)
        ]
        rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in found["texts"]]
        pair = tokenizer.encode("the film", "is good")
        found["settings"].append(
            {
                "tokenizer": data,
                "ids": rows,
                "decoded": [tokenizer.decode(ids, skip_special_tokens=False) for ids in rows],
                "pair": [pair.ids, pair.type_ids],
            }
        )
    path = Path(__file__).with_name("wordpiece.json")
    path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    print(f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
