"""Make tokens.json: a small vocabulary, nasty texts, and their ids by the tokenizers library.

    python tests/golden/make_tokens.py SmolLM2-135M-Instruct.gguf

Runs in an environment of its own with tokenizers, transformers and gguf; minift is not imported.
The library would turn the name of a special token in a text into that token, so the tokenizers
here know no added tokens: such names are plain text, as they are in minift.
"""

import json
import random
import sys
from pathlib import Path

import gguf
import tokenizers
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def cut_by(pattern):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)]
    )


def digits():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(True)]
    )


PRE_TOKENIZERS = {
    "gpt2": byte_level(True),
    "smollm": digits(),
    "llama3": cut_by(LLAMA3),
    "qwen2": cut_by(QWEN2),
}

# What the small vocabulary is trained on: enough repetition for merges in several scripts, across
# spaces, digits, newlines and apostrophes, so that a wrong cut gives other ids.
TRAINING = """
The old lighthouse keeper's lamp wasn't lit on the 25th of December 1899, but we'll light it again.
The keeper said: "I'm sure they've seen it; they're 1,234,567 miles away..." He'd never say that!
the the the and and and lighthouse lighthouse keeper keeper light lights lighting lit
It'S THE KEEPER'S LAMP, WE'LL SEE. They'Ve seen 100 200 300 1000 2000 3000 10000 lamps.
Über Straße, naïve café, façade, señor, crème brûlée; naïve café naïve café señor señor.
Маяк горит над морем, маяк горит над морем. Старый смотритель зажёг маяк.
灯塔在海边。灯塔在海边。你好世界，你好世界。 東京の灯台 東京の灯台 こんにちは こんにちは
등대는 바다에 있다 등대는 바다에 있다
المنارة على البحر المنارة على البحر ٢٠٢٤ ٢٠٢٤ ١٢٣
ประภาคารอยู่ริมทะเล ประภาคารอยู่ริมทะเล
दीपस्तंभ समुद्र के पास है दीपस्तंभ समुद्र के पास है १२३
😀😀 👍👍 👨‍👩‍👧‍👦 👨‍👩‍👧‍👦 🇩🇪 🇫🇷 ❤️ ❤️
def light(n):
    for i in range(n):
        if i % 2 == 0:
            print("on")
        else:
            print("off")
\t\ttabs\t\tand    spaces     here\r\nand\r\n\r\nlines\n\n\n\n---
==== !!! ??? ... <|im_end|> <|im_end|>
"""

NASTY = """Hello
 Hello
Hello world
   leading
a b  c   d    e
it's
IT'S
It'S THE
they've they'Ve THEY'RE
I'm I'M i'LL we'll
he'd HE'D
'
''
'''s
's
 's
'ſ is a long s, 'S is not
ſ 'ſ'ſ x'ſy
x'sy
don’t ’s
rock'n'roll 't 'tis
'9 '99s
123
1
1234
12345 6789
 1 2  3   4
3.14159
1,234,567.89
-42
1e-10
0x1F
a1b2c3
1st 2nd 3rd
٣٤٥
١٢٣ ٢٠٢٤
१२३
１２３
½ ¼ ²³ ⅷ Ⅳ
①②③
一二三
naïve café
naïve café
Ünïcödé
Straße STRASSE
ǆ ǅ Ǆ
İstanbul ı
Привет, мир
Ελληνικά γλώσσα
שָׁלוֹם עוֹלָם
العربية السلام عليكم
مرحبا٢
你好世界
你好，世界。
東京タワー
こんにちは世界
カタカナ ﾊﾝｶｸ
한국어 등대
한글
สวัสดีชาวโลก
ประภาคาร๑๒๓
नमस्ते दुनिया
தமிழ்
ខ្មែរ
မြန်မာ
አማርኛ
ᏣᎳᎩ
𝒳𝓎𝓏 𝟙𝟚𝟛
𐍈 𐐷
𠀀𠀁 㐀
😀
😀😀 👍🏽
👨‍👩‍👧‍👦
🇩🇪🇫🇷
❤️ ☺️
1️⃣ #️⃣
a😀b 😀 c
€ £ ¥ $ ¢
© ® ™ ° § ¶
← → ↑ ∀∃ ≠ ≤
+-*/=<>
a+b=c
!!!
?!?!
...
. . .
--- ===
(parens) [brackets] {braces}
"quotes" “curly” «guillemets» „low“
end.Start
end. Start
snake_case __dunder__
camelCase PascalCase
path/to/file.txt
C:\\dir\\file
user@example.org
https://example.org/a?b=c&d=1#e
<br /><br />
<a href="x">y</a>
&amp; &#39;
<|im_start|>
<|im_end|>
<|im_start|>user
a<|im_end|>b
 <|endoftext|>
<|im_end|><|im_end|>
<|begin_of_text|><|eot_id|>
<|im_end
<pad> <s> </s> [CLS] [MASK]
def f(x): return x
    indented
ᅠ hangul filler
soft­hyphen
zero​width
word⁠joiner
﻿byte order mark
ltr‎rtl‏
a\u0301 e\u0301\u0302
\u0301 alone
\ufffd replacement
\ufdd0 \uffff nonchars
\ue000 private
\U000f0000 private
\U0010ffff
\u1c89 \ua7cb \U000105c0 \U00031350 new letters
\U00010d40\U00011bf0 \U0001ccf0 new numbers
\u00aa\u00ba \u00b5
\u02b0 \u0345
\u2160\u2188 \u3007
\u00b7 \u0387
\u16ee \u09f4
"""

CONTROLS = [
    " Hello  world ",
    "trailing   ",
    "",
    " ",
    "  ",
    "        ",
    " " * 33 + "x",
    "\n",
    "\n\n",
    "\n \n",
    " \n",
    "\r\n",
    "\r\n\r\n",
    "a\nb",
    "a\n b",
    "a \n b",
    "a\n\n\nb",
    "!\n\n",
    "!\r\n x",
    " !\n",
    "\t",
    "\ta\t b",
    "\t\t\tx",
    "\x0b\x0cx",
    "\x1c\x1d\x1e\x1f",
    "a\x1cb \x1f c",
    "\x00",
    "a\x00b",
    "\x01\x02\x7f",
    "\x04\x06\x13",
    "\x80\x85\x9f",
    "a\x85b \x85 c",
    "\xa0",
    "a\xa0b",
    "a \xa0 b",
    "\xa0\xa0x",
    "\u1680x",
    "a\u2003b",
    "\u2028",
    "a\u2028b\u2029c",
    " \u2028 x",
    "\u202f1\u202f000",
    "a\u3000b",
    "\u3000\u3000x",
    "\u180ex",
    "a" * 300,
    "ab" * 100,
    "-" * 100,
    "1" * 50,
    "é" * 40,
    "😀" * 20,
    "the lighthouse keeper's lamp " * 3,
]


def texts():
    found = [line for line in NASTY.split("\n") if line] + CONTROLS
    draw = random.Random(20240229)
    pieces = [
        " ",
        "  ",
        "\n",
        "\t",
        "'s",
        "'",
        "12",
        "٣",
        "é",
        "e\u0301",
        "你",
        "好",
        "a",
        "The",
        "😀",
    ]
    pieces += ["\xa0", "\u3000", "\u2028", ".", "!!", "-", "ก", "ſ", "\r\n", "<|im_end|>", "½", "_"]
    for _ in range(40):
        found.append("".join(draw.choices(pieces, k=draw.randint(3, 14))))
    for _ in range(20):  # any characters at all
        codes = [draw.randrange(0x20, 0x11_0000) for _ in range(12)]
        found.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    return found


def small():
    """A byte-level BPE of 700 tokens, with the library's defaults."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS["qwen2"]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING.split("\n\n") + TRAINING.splitlines(True), trainer)
    return tokenizer


def plain(vocab, merges, pattern, *, nfc=False, ignore_merges=False):
    """The tokenizer of that vocabulary, without added tokens."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pattern]
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def members(pattern):
    """The code points that `pattern` matches, as ranges in hex."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    ranges = []
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        if len(split.pre_tokenize_str("\0" + chr(code) + "\0")) == 3:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return " ".join(f"{a:X}-{b:X}" for a, b in ranges)


CONVERSATIONS = [
    [{"role": "user", "content": "Hello, keeper!"}],
    [
        {"role": "user", "content": "What's the light?"},
        {"role": "assistant", "content": "The lamp, lit in 1899."},
    ],
    [
        {"role": "system", "content": "Say little."},
        {"role": "user", "content": "  Hi \n"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "\n\nAnd 灯塔?"},
        {"role": "assistant", "content": "在海边。😀"},
    ],
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def chats(tokenizer, template, bos):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)
    rows = []
    for conversation in CONVERSATIONS:
        for reply in (False, True) if conversation[-1]["role"] == "user" else (False,):
            ids = fast.apply_chat_template(
                conversation,
                chat_template=template,
                add_generation_prompt=reply,
                tokenize=True,
                return_dict=False,
            )
            rows.append({"messages": conversation, "reply": reply, "ids": ids})
    return {"template": template, "rows": rows}


def main(path):
    trained = small()
    document = json.loads(trained.to_str())
    vocab = document["model"]["vocab"]
    merges = [tuple(merge) for merge in document["model"]["merges"]]
    samples = texts()
    kinds = {name: {"pattern": name} for name in PRE_TOKENIZERS}
    kinds["qwen2"]["nfc"] = True
    kinds["llama3"]["ignore_merges"] = True
    made = {name: plain(vocab, merges, **kind) for name, kind in kinds.items()}
    draw = random.Random(7)
    random_ids = [[draw.randrange(len(vocab)) for _ in range(20)] for _ in range(20)]

    reader = gguf.GGUFReader(path)
    meta = {key: item.contents() for key, item in reader.fields.items()}
    tokens, template = meta["tokenizer.ggml.tokens"], meta["tokenizer.chat_template"]
    real_vocab = {token: i for i, token in enumerate(tokens)}
    real_merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    real = plain(real_vocab, real_merges, "smollm")
    missing = {b for b, c in byte_characters().items() if c not in real_vocab}
    real_texts = [n for n, text in enumerate(samples) if not missing & set(text.encode())]
    real_chat = plain(real_vocab, real_merges, "smollm")
    real_chat.add_special_tokens(tokens[:17])

    golden = {
        "versions": {m.__name__: m.__version__ for m in (tokenizers, transformers)},
        "tokenizer": document,
        "texts": samples,
        "small": {
            name: {
                "tokenizer": {
                    key: value
                    for key, value in json.loads(tokenizer.to_str()).items()
                    if key in ("pre_tokenizer", "normalizer")
                },
                "ids": [tokenizer.encode(text).ids for text in samples],
            }
            for name, tokenizer in made.items()
        },
        "decode": [{"ids": ids, "text": made["gpt2"].decode(ids)} for ids in random_ids],
        "smollm2": {
            "texts": real_texts,
            "ids": [real.encode(samples[n]).ids for n in real_texts],
            "missing": sorted(missing),
            "chat": chats(real_chat, template, "<|im_start|>"),
        },
        "chat": {
            "smollm2": chats(trained, template, None),
            "chatml": chats(trained, CHATML, None),
            "llama3": chats(trained, LLAMA3_CHAT, "<|begin_of_text|>"),
        },
        "kinds": {"L": members(r"\p{L}"), "N": members(r"\p{N}"), "S": members(r"\s")},
    }
    out = Path(__file__).with_name("tokens.json")
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, len(samples), len(real_texts), len(vocab))


def byte_characters():
    """byte -> the character that stands for it, found by asking the library."""
    shown = {}
    cut = byte_level(False)
    for code in [*range(0x80), *range(0x80, 0x800), 0x800, *range(0x1000, 0x10000, 0x1000)]:
        if not 0xD800 <= code < 0xE000:
            raw = chr(code).encode()
            shown |= dict(zip(raw, cut.pre_tokenize_str(chr(code))[0][0], strict=True))
    for code in (0x10000, 0x40000, 0x80000, 0xC0000, 0x100000):
        raw = chr(code).encode()
        shown |= dict(zip(raw, cut.pre_tokenize_str(chr(code))[0][0], strict=True))
    return shown


if __name__ == "__main__":
    main(sys.argv[1])
