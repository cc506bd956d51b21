"""NFC and NFD by hand are Python's own, and take no longer for a row of marks than for letters."""

from __future__ import annotations

import random
import time
import unicodedata
from collections.abc import Callable

import pytest

from minift.tokenizers import normal_forms
from minift.tokenizers.normal_forms import nfc, nfd

FORMS: list[tuple[str, Callable[[str], str]]] = [("NFC", nfc), ("NFD", nfd)]
# Letters that compose, those that do not, Hangul in parts, Indic signs that compose with each
# other, characters that composition leaves out, and marks of many classes.
LETTERS = "aeuoAZ\u00e9\u01d7\u1ec7\u1100\u1161\u11a8\uac00\u09c7\u09be\u0958\u2126\ufb2c\u0f73 b"
MARKS = (
    "\u0300\u0301\u0308\u0323\u0327\u0328\u0345\u0344\u05b0\u064b\u0f71\u0f72\u0f73\u0f81\u3099"
    "\u0c56\u0938\u093c\u0591\U0001d165\U0001d16d"
)


@pytest.mark.parametrize(("form", "ours"), FORMS)
def test_short_texts_by_hand_are_pythons(
    form: str, ours: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    normal_forms._long_rows.cache_clear()
    monkeypatch.setattr(normal_forms, "LONG", 0)
    draw = random.Random(5)
    for _ in range(20_000):
        text = "".join(
            draw.choice(MARKS if draw.random() < 0.6 else LETTERS)
            for _ in range(draw.randint(1, 12))
        )
        assert ours(text) == unicodedata.normalize(form, text), ascii(text)
    monkeypatch.undo()
    normal_forms._long_rows.cache_clear()


@pytest.mark.parametrize(("form", "ours"), FORMS)
def test_every_character_alone_and_behind_marks(form: str, ours: Callable[[str], str]) -> None:
    for code in [*range(0x3400), *range(0xA000, 0x11300), *range(0x1D100, 0x1D200)]:
        if not 0xD800 <= code < 0xE000:
            text = "a" + "\u0323\u0301" * 16 + chr(code) + "\u0301"
            assert ours(text) == unicodedata.normalize(form, text), ascii(text)


@pytest.mark.parametrize(("form", "ours"), FORMS)
def test_long_rows_are_pythons(form: str, ours: Callable[[str], str]) -> None:
    draw = random.Random(6)
    for _ in range(300):
        row = "".join(draw.choices(MARKS, k=draw.choice((29, 30, 31, 32, 200))))
        text = f"x {draw.choice(LETTERS)}{row}{draw.choice(LETTERS)}\u0301 {draw.choice(LETTERS)}"
        assert ours(text) == unicodedata.normalize(form, text), ascii(text)


@pytest.mark.parametrize(("form", "ours"), FORMS)
def test_a_megabyte_of_marks_takes_seconds_not_hours(form: str, ours: Callable[[str], str]) -> None:
    for row in ("\u0301", "\u0301\u0323", "\u05b0\u0301\u0f73", "e\u0301" + "\u0323" * 40):
        text = "a" + row * (500_000 // len(row))
        begin = time.process_time()
        made = ours(text)
        assert time.process_time() - begin < 5
        assert len(made) >= len(text) // 3
