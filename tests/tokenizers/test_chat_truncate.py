"""Conversations over a length: what stands and what goes, by hand and as properties."""

from __future__ import annotations

import random
from typing import Any

import pytest

from minift.errors import ConfigError, EncodeError
from minift.tokenizers import chat
from minift.tokenizers.chat_truncate import render_within

START, END = 256, 257
OPEN = [START, *b"system\nbe kind", END, 10]
LEAST = len("‹system\n›\n‹user\n›\n‹assistant\n")  # tokens of the template, with one question
SHOWN = {START: "‹", END: "›"}


class Bytes:
    """A tokenizer of single bytes, so that every id can be read off the text."""

    eos, bos, add_bos, template, chat_template = END, START, False, None, "chatml"
    special = {"<|im_start|>": START, "<|im_end|>": END}  # noqa: RUF012

    def encode(self, text: str, after: int | None = None) -> list[int]:
        if "\x00" in text:
            raise EncodeError("found byte 00, allowed others")
        return list(text.encode())

    def token_bytes(self, i: int) -> bytes:
        return {START: b"<|im_start|>", END: b"<|im_end|>"}[i]


def talk(*texts: str) -> list[dict[str, Any]]:
    """ "u hi" is what a user says, "a yo" an answer, "s x" the system; "0 yo" has weight 0."""
    roles = {"u": "user", "a": "assistant", "s": "system", "0": "assistant"}
    return [
        {"role": roles[t[0]], "content": t[2:]} | ({"weight": 0} if t[0] == "0" else {})
        for t in texts
    ]


def shown(messages: list[dict[str, Any]], most: int) -> str:
    """The text of what is kept, ‹ › for the special tokens."""
    ids, mask, cut = render_within(Bytes(), messages, most)  # type: ignore[arg-type]
    assert len(ids) == len(mask) <= most
    assert cut or (ids, mask) == chat.render(Bytes(), messages)  # type: ignore[arg-type]
    parts = [SHOWN[i].encode() if i in SHOWN else bytes([i]) for i in ids]
    return b"".join(parts).decode()


KIND = talk("s be kind", "u hi", "a yo", "u b?", "a bye")
SYSTEM, WHOLE = "‹system\nbe kind›\n", "‹user\nhi›\n‹assistant\nyo›\n‹user\nb?›\n‹assistant\nbye›\n"


@pytest.mark.parametrize(
    "kept",
    [
        f"{SYSTEM}{WHOLE}",
        f"{SYSTEM}‹user\nb?›\n‹assistant\nbye›\n",  # the whole oldest exchange
        f"{SYSTEM}‹user\nb?›\n‹assistant\nbye›",  # what follows the answer
        f"{SYSTEM}‹user\n?›\n‹assistant\nbye›",  # the beginning of the question
        f"{SYSTEM}‹user\n›\n‹assistant\nbye›",
        "‹system\nbe kin›\n‹user\n›\n‹assistant\nbye›",  # the end of the system's text
        "‹system\n›\n‹user\n›\n‹assistant\nbye›",
        "‹system\n›\n‹user\n›\n‹assistant\nbye",  # the end of the answer
        "‹system\n›\n‹user\n›\n‹assistant\nb",
    ],
)
def test_what_goes_first_by_hand(kept: str) -> None:
    assert shown(KIND, len(kept)) == kept  # a character here is a token


def test_a_token_too_many_costs_the_oldest_exchange() -> None:
    assert shown(KIND, len(SYSTEM + WHOLE) - 1) == f"{SYSTEM}‹user\nb?›\n‹assistant\nbye›\n"
    three = [*KIND, *talk("u c", "a d")]
    last = "‹user\nc›\n‹assistant\nd›\n"
    one_gone = f"{SYSTEM}‹user\nb?›\n‹assistant\nbye›\n{last}"
    assert shown(three, len(SYSTEM + WHOLE + last) - 1) == one_gone
    assert shown(three, len(one_gone)) == one_gone
    assert shown(three, len(one_gone) - 1) == SYSTEM + last


def test_without_room_for_the_template_itself_it_is_refused() -> None:
    least = len("‹system\n›\n‹user\n›\n‹assistant\nb")
    for most in range(2, least):
        text = f"max_length: found {most}, allowed {least} or more: .* {least - 1} tokens"
        with pytest.raises(ConfigError, match=text):
            shown(KIND, most)


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        # Several questions in a row go together, and lose their text one after the other.
        (talk("u a", "a b", "u cd", "u ef", "a g"), "‹user\ncd›\n‹user\nef›\n‹assistant\ng›\n"),
        (talk("u cd", "u ef", "a g"), "‹user\nd›\n‹user\nef›\n‹assistant\ng›"),
        (talk("u cd", "u ef", "a g"), "‹user\n›\n‹user\nf›\n‹assistant\ng›"),
        # An answer without a question: only its end can go.
        (talk("a hello"), "‹assistant\nhello›"),
        (talk("a hello"), "‹assistant\nh"),
        # What follows the last answer that is learned.
        (talk("u a", "a b", "u cd", "0 e"), "‹user\na›\n‹assistant\nb›"),
        # One of weight 0 in between is as good as a question.
        (talk("u a", "0 bc", "a d"), "‹user\n›\n‹assistant\nbc›\n‹assistant\nd›"),
        (talk("u a", "0 bc", "a d"), "‹user\n›\n‹assistant\nc›\n‹assistant\nd›"),
        # A learned one before the last keeps its end token.
        (talk("u a", "a bc", "a d"), "‹user\n›\n‹assistant\n›\n‹assistant\nd›"),
        # Where none is learned, the last message is treated as the others.
        (talk("u ab", "0 c"), "‹user\nb›\n‹assistant\nc›\n"),
    ],
)
def test_other_conversations_by_hand(messages: list[dict[str, Any]], kept: str) -> None:
    assert shown(messages, len(kept)) == kept


def test_every_length_keeps_the_opening_the_headers_and_an_answer() -> None:
    draw = random.Random(5)
    for _ in range(150):
        messages = talk("s be kind")
        for _ in range(draw.randrange(1, 5)):
            messages += talk("u " + "q" * draw.randrange(1, 40), "a " + "r" * draw.randrange(1, 20))
        whole, _ = chat.render(Bytes(), messages)  # type: ignore[arg-type]
        answer = len(messages[-1]["content"]) + 1
        for most in range(LEAST + 1, len(whole)):
            ids, mask, cut = render_within(Bytes(), messages, most)  # type: ignore[arg-type]
            assert cut
            assert len(ids) == len(mask) <= most
            # Each turn that is kept has its tokens; the last may have lost its end.
            texts = bytes(i for i in ids if i < 256)
            assert texts.count(b"user\n") == texts.count(b"assistant\n") == ids.count(START) // 2
            assert ids.count(START) - ids.count(END) == (most < LEAST + answer)
            assert sum(mask) >= min(answer, most - LEAST)
            if most >= len(OPEN) + LEAST - 10 + answer:
                assert ids[: len(OPEN)] == OPEN
                end = whole[-1 - answer :]  # with a line end, for which there may be no room
                assert ids[-len(end) :] == end or ids[-answer:] == end[:-1]
