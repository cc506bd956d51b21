"""The part of YAML that a ChatterBot corpus uses; expected values are PyYAML's."""

from __future__ import annotations

from pathlib import Path

import pytest

from minift.data.corpus import conversations_of
from minift.errors import DataError


def read(folder: Path, text: str) -> list[list[str]]:
    (folder / "a.yml").write_text(text)
    return list(conversations_of(folder / "a.yml"))


def test_every_kind_of_turn(tmp_path: Path) -> None:
    text = (
        "categories:\n- x\n\nconversations:\n"
        "- - What's this?\n  - 'it''s: \"quoted\"\n    over lines. '\n"
        "- - Code\n  - |\n    def f():\n\n        return 1\n"
        '- - "a: b"\n  - folded\n    text\n\n'
        "- One turn?\n  - '22'\n- - e\u00a0\n  - f\n"
    )
    assert read(tmp_path, text) == [
        ["What's this?", 'it\'s: "quoted" over lines. '],
        ["Code", "def f():\n\n    return 1\n"],
        ["a: b", "folded text"],
        ["One turn? - '22'"],
        ["e\u00a0", "f"],
    ]


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ("'open", "'open"),
        ("'a'b'", "'a'b'"),
        ('"a\\n"', '"a'),
        ("a: b", "a: b"),
        ("a # b", "a # b"),
        ("&anchor", "&anchor"),
        ("[a]", "[a]"),
        ("a\n\n    b", "a blank line"),
        ("a\nb: c", "b: c"),
    ],
)
def test_other_yaml_is_refused_by_line(tmp_path: Path, item: str, found: str) -> None:
    with pytest.raises(DataError, match=r"line [34]") as caught:
        read(tmp_path, f"conversations:\n- - q\n  - {item}\n")
    assert found in str(caught.value)
