"""The `post_processor` of tokenizer.json, to a Wrapping and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minift.errors import FormatError
from minift.tokenizers.vocabulary import field_of, one_of
from minift.tokenizers.wrapping import Part, Wrapping, around, twice_around

WHERE = "post_processor"
MOST_PARTS = 8  # RoBERTa's pair has six


def wrapping_of(value: object, special: Mapping[str, int], path: str) -> Wrapping | None:
    """What the file puts around texts; None where it says nothing of that."""
    if value is None:
        return None
    if type(value) is not dict:
        raise FormatError(path, WHERE, value, "an object", "bad-type")
    known = {
        "ByteLevel": _nothing,  # it cuts offsets, and adds no token
        "TemplateProcessing": _template,
        "BertProcessing": _processing,
        "RobertaProcessing": _processing,
        "Sequence": _sequence,
    }
    return one_of(value.get("type"), known, path, WHERE + ".type")(value, special, path)


def _nothing(value: Mapping[str, Any], special: Mapping[str, int], path: str) -> None:
    return None


def _sequence(value: Mapping[str, Any], special: Mapping[str, int], path: str) -> Wrapping | None:
    steps = field_of(value, "processors", list, path, at=WHERE + ".")
    if any(type(step) is dict and step.get("type") == "Sequence" for step in steps):
        raise FormatError(path, WHERE, "a Sequence in a Sequence", "none", "unknown-field")
    found = [w for w in (wrapping_of(step, special, path) for step in steps) if w is not None]
    if len(found) > 1:
        raise FormatError(path, WHERE, f"{len(found)} that add tokens", "one", "unknown-field")
    return found[0] if found else None


def _processing(value: Mapping[str, Any], special: Mapping[str, int], path: str) -> Wrapping:
    def token(key: str) -> int:
        match value.get(key):
            case [str(text), int(i)] if type(i) is int and special.get(text) == i:
                return i
        allowed = "a special token and its id"
        raise FormatError(path, f"{WHERE}.{key}", value.get(key), allowed, "out-of-range")

    for key in value:
        if key not in ("type", "sep", "cls", "trim_offsets", "add_prefix_space"):
            allowed = "type, sep, cls, trim_offsets, add_prefix_space"
            raise FormatError(path, f"{WHERE}.{key}", "an unknown field", allowed, "unknown-field")
    made = around if value["type"] == "BertProcessing" else twice_around
    return made(token("cls"), token("sep"))


def _template(value: Mapping[str, Any], special: Mapping[str, int], path: str) -> Wrapping:
    named = field_of(value, "special_tokens", dict, path, at=WHERE + ".")
    for text, row in named.items():
        match row:
            case {"id": str(name), "ids": [int(i)]} if name == text and special.get(text) == i:
                continue
        where, allowed = f'{WHERE}.special_tokens "{text}"', "a special token and its one id"
        raise FormatError(path, where, row, allowed, "out-of-range")

    def parts(key: str) -> tuple[Part, ...]:
        rows = field_of(value, key, list, path, at=WHERE + ".")
        if len(rows) > MOST_PARTS:
            where, allowed = f"{WHERE}.{key}", f"at most {MOST_PARTS} parts"
            raise FormatError(path, where, len(rows), allowed, "limit")
        return tuple(part(row, f"{WHERE}.{key}[{n}]") for n, row in enumerate(rows))

    def part(row: object, where: str) -> Part:
        match row:
            case {"Sequence": {"id": ("A" | "B") as text, "type_id": int(kind)}}:
                found: int | str = text
            case {"SpecialToken": {"id": str(text), "type_id": int(kind)}} if text in named:
                found = special[text]
            case _:
                allowed = "a text, A or B, or a token of special_tokens, with a type_id"
                raise FormatError(path, where, row, allowed, "unknown-field")
        if type(kind) is not int or not 0 <= kind <= 1:
            raise FormatError(path, where, row, "token type 0 or 1", "out-of-range")
        return found, kind

    wrapping = Wrapping(single=parts("single"), pair=parts("pair"))
    match [what for what, _ in wrapping.single]:
        case ["A"] | [int(), "A"] | [int(), "A", int()]:
            pass
        case _:
            allowed = "the text, after one special token at most and before one at most"
            found = value["single"]
            raise FormatError(path, WHERE + ".single", found, allowed, "unknown-field")
    if [what for what, _ in wrapping.pair if isinstance(what, str)] != ["A", "B"]:
        allowed = "A, then B, each once"
        raise FormatError(path, WHERE + ".pair", value["pair"], allowed, "unknown-field")
    return wrapping


def to_json(wrapping: Wrapping, tokens: Sequence[str] | Mapping[int, str]) -> dict[str, Any]:
    """A TemplateProcessing, which can say all of them."""

    def row(part: Part) -> dict[str, Any]:
        what, kind = part
        if isinstance(what, str):
            return {"Sequence": {"id": what, "type_id": kind}}
        return {"SpecialToken": {"id": tokens[what], "type_id": kind}}

    used = {w for w, _ in (*wrapping.single, *wrapping.pair) if isinstance(w, int)}
    return {
        "type": "TemplateProcessing",
        "single": [row(part) for part in wrapping.single],
        "pair": [row(part) for part in wrapping.pair],
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in sorted(used)
        },
    }
