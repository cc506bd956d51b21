"""What is found before the first step: rooms, characters, special tokens, counts of cuts."""

from __future__ import annotations

import pytest

from minift.data.read import open_records
from minift.errors import ConfigError, Notice
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.methods import attach
from minift.peft.prompt import Prompt
from minift.train import checks
from minift.train.checks import Counted, Cuts, Vocabulary, check_room, count_cuts, most_tokens


class Letters:
    """A vocabulary that has a, b and c, and é once it is composed."""

    special = {"<s>": 0, "[PAD]": 1}  # noqa: RUF012

    def encode(self, text, after=None):
        from unicodedata import normalize

        text = normalize("NFC", text).replace(" ", "").replace("\u200b", "")
        for c in text:
            if not (c.isascii() or c == "é"):
                raise checks.EncodeError(f"found {c}")
        return list(map(ord, text))


def model():
    return Transformer(ModelConfig("llama", 258, 16, 1, 4, 2, 4, 12, 64))


def test_the_room_of_a_row() -> None:
    assert check_room(64, model(), by_default=False) == 64
    assert check_room(1024, model(), by_default=True) == 64
    with pytest.raises(ConfigError, match=r"found 99,999, allowed at most 64: .* context of 64$"):
        check_room(99_999, model(), by_default=False)
    prompted = attach(model(), Prompt(10))
    assert check_room(1024, prompted, by_default=True) == 54
    with pytest.raises(ConfigError, match=r"found 64, allowed at most 54: .*64, less the 10 that"):
        check_room(64, prompted, by_default=False)


def test_it_is_said_only_where_it_cuts_a_row() -> None:
    checks.say_capped(1024, 64, [Cuts(9, 0)])
    checks.say_capped(64, 64, [Cuts(9, 3)])
    with pytest.warns(Notice, match="max_length: 64 tokens in place of 1,024"):
        checks.say_capped(1024, 64, [Cuts(9, 0), Cuts(9, 1)])


def test_characters_that_a_vocabulary_refuses() -> None:
    vocabulary = Vocabulary(Letters())  # type: ignore[arg-type]
    assert vocabulary.plain
    assert not vocabulary.may_refuse("abc \x00")
    assert vocabulary.may_refuse("abß")
    assert not vocabulary.may_refuse("é")
    assert vocabulary.may_refuse("e\u0301")  # perhaps: the mark alone cannot be written
    assert vocabulary.may_be_nothing(" ")
    assert not vocabulary.may_be_nothing(" a")


def test_names_of_special_tokens_in_texts() -> None:
    vocabulary = Vocabulary(Letters())  # type: ignore[arg-type]
    found = [vocabulary.spells_special(t) for t in ("a <s> b", "[PAD]", "<t> [a]", "s", "<s")]
    assert found == [True, True, False, False, False]


def test_a_text_has_no_more_tokens_than_this() -> None:
    assert most_tokens("abc") == 4
    assert most_tokens("é") == 3
    assert most_tokens("\ufdfa") == 1 + 33  # one character, 18 when it is taken apart
    assert most_tokens("a\udead") == 3


def test_cuts_are_counted_or_taken_from_a_sample() -> None:
    rows = list(range(checks.SAMPLE))
    assert count_cuts(rows, 1000, lambda i: i % 4 == 0) == Cuts(1000, checks.SAMPLE // 4)
    asked: list[int] = []
    many = list(range(10 * checks.SAMPLE))
    found = count_cuts(many, 5000, lambda i: asked.append(i) or i % 20 == 0)  # type: ignore[func-returns-value]
    assert len(asked) == checks.SAMPLE
    assert found == Cuts(5000, 5 * checks.SAMPLE, exact=False)
    assert str(found) == "about 1,280 of 5,000 rows"
    assert checks.cut_facts({False: found, True: Cuts(3, 0)}) == {
        "train_cut": 1280, "train_cut_is_exact": False,
    }  # fmt: skip


def test_one_notice_for_rows_of_a_kind() -> None:
    some = Counted()
    rows = open_records([{"text": "a"}] * 9)
    some.say(rows, "nothing", "it is so")
    for i in (4, 2, 7):
        some.add(i)
    match = r"^a list of rows: 3 of 9 rows have no text \(first: row 5\); so it is"
    with pytest.warns(Notice, match=match):
        some.say(rows, "no text", "so it is")
