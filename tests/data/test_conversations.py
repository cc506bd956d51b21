"""Conversations of the published shapes, and every part of them that is not text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minift.data.read import open_records
from minift.errors import DataError

ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def opened(folder: Path, row: dict[str, Any]) -> Any:
    path = folder / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return open_records(path)[0]["messages"]


def test_sharegpt_rows_are_messages(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "markdown": None}]
    assert opened(tmp_path, {"id": "x", "conversations": turns}) == [ASKED, SAID]
    assert opened(tmp_path, {"conversations": [ASKED, SAID]}) == [ASKED, SAID]
    system = {"role": "system", "content": "Be brief."}
    assert opened(tmp_path, {"system": "Be brief.", "conversations": turns})[0] == system
    turns = [{"from": "system", "value": "Be brief."}, *turns]
    assert opened(tmp_path, {"conversations": turns, "system": None})[0] == system
    # From Python, too.
    assert open_records([{"conversations": turns}])[0]["messages"][1:] == [ASKED, SAID]


def test_openai_rows_with_parts_weights_and_empty_fields(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "!"}]
    messages = [
        {"role": "user", "content": parts, "name": None},
        SAID | {"weight": 0, "tool_calls": None, "refusal": None},
        ASKED | {"weight": 0},
        SAID | {"weight": 1, "function_call": None},
    ]
    assert opened(tmp_path, {"messages": messages, "tools": [], "functions": None}) == [
        {"role": "user", "content": "a!"},
        SAID | {"weight": 0},
        ASKED,
        SAID,
    ]


def test_system_turns_anywhere_and_turns_of_one_role_in_a_row(tmp_path: Path) -> None:
    messages = [SAID, ASKED, ASKED, {"role": "system", "content": ""}, SAID, SAID]
    assert opened(tmp_path, {"messages": messages}) == messages


@pytest.mark.parametrize(
    ("row", "field", "found"),
    [
        ({"messages": [ASKED | {"role": "tool"}, SAID]}, "messages[0].role", '"tool"'),
        ({"messages": [ASKED | {"role": "developer"}, SAID]}, "messages[0].role", '"developer"'),
        ({"messages": [ASKED | {"role": "function"}, SAID]}, "messages[0].role", '"function"'),
        ({"messages": [ASKED, SAID | {"tool_calls": [{}]}]}, "messages[1].tool_calls", "a list"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": None, "function_call": {1: 1}}]},
            "messages[1].function_call", "an object",
        ),
        ({"messages": [ASKED, SAID], "tools": [{}]}, "tools", "a list"),
        ({"messages": [ASKED, SAID | {"weight": 0.5}]}, "messages[1].weight", "0.5"),
        ({"messages": [ASKED, SAID | {"weight": True}]}, "messages[1].weight", "true"),
        ({"messages": [ASKED, SAID | {"weight": 0}]}, "messages", "no assistant message with"),
        (
            {"messages": [ASKED | {"content": [{"type": "image_url", "image_url": {}}]}, SAID]},
            "messages[0].content[0].type", '"image_url"',
        ),
        (
            {"messages": [ASKED | {"content": [{"type": "text"}]}, SAID]},
            "messages[0].content[0].text", "no such field",
        ),
        ({"messages": [ASKED | {"content": ["a"]}, SAID]}, "messages[0].content[0]", '"a"'),
        ({"messages": [ASKED | {"content": []}, SAID]}, "messages[0].content", "an empty text"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "conversations", "no assistant"),
        (
            {"conversations": [{"from": "function_call", "value": "a"}]},
            "conversations[0].from", '"function_call"',
        ),
        ({"conversations": [{"from": "gpt", "text": "a"}]}, "conversations[0].value", "no such"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "conversations[0].value", "3"),
    ],
)  # fmt: skip
def test_what_is_not_text_is_refused_by_field(
    tmp_path: Path, row: dict[str, Any], field: str, found: str
) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, row)
    assert (caught.value.line, caught.value.field) == (1, field)
    assert f"found {found}" in str(caught.value)
    with pytest.raises(DataError, match=r"^row 1, field"):
        open_records([row])
