"""Added tokens without a row in the embedding: `<image_soft_token>` in Gemma 3's text models.

Published folders list them where a tokenizer is shared with a larger model, or where tokens were
added and the embedding was not. No model can read them, so they are left out, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minift.errors import notice
from minift.tokenizers.beside import DECODER, Beside
from minift.tokenizers.vocabulary import MOST_TOKENS, ROLES


def rows_of(model: Mapping[str, Any]) -> int | None:
    """How many rows the embedding of a model has, as its config.json says."""
    inner = model.get("text_config")
    for config in (model, inner if isinstance(inner, dict) else {}):
        if type(rows := config.get("vocab_size")) is int and 0 < rows <= MOST_TOKENS:
            return rows
    return None


def fitting(data: Mapping[str, Any], beside: Beside, path: str) -> tuple[Mapping[str, Any], Beside]:
    """A parsed tokenizer.json and the files beside it, without added tokens past the embedding."""
    rows = rows_of(beside.model)
    model = data.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    vocab = vocab if isinstance(vocab, dict) else {}

    def past(text: object, i: object) -> bool:
        if rows is None or type(i) is not int or not rows <= i < MOST_TOKENS:
            return False
        return isinstance(text, str) and vocab.get(text, i) == i

    def past_row(row: object, i: object) -> bool:
        return isinstance(row, dict) and past(row.get("content"), i)

    gone: dict[str, int] = {}
    added = data.get("added_tokens")
    for row in added if isinstance(added, list) else []:
        if isinstance(row, dict) and past_row(row, row.get("id")):
            gone[row["content"]] = row["id"]
    listed = beside.rows or {}
    for key, row in listed.items():
        if key.isascii() and key.isdigit() and len(key) < 10 and past_row(row, int(key)):
            gone[row["content"]] = int(key)
    gone |= {text: i for text, i in (beside.added or {}).items() if past(text, i)}
    if not gone:
        return data, beside
    first = [f"{text!r} as {i:,}" for text, i in list(gone.items())[:3]]
    more = f" and {len(gone) - 3:,} more" if len(gone) > 3 else ""
    notice(path, f"tokens past the model's {rows:,} are left out: {', '.join(first)}{more}")

    if isinstance(added, list):
        kept = [row for row in added if not (isinstance(row, dict) and row.get("content") in gone)]
        data = dict(data) | {"added_tokens": kept}
    if isinstance(model, dict) and not gone.keys().isdisjoint(vocab):
        kept_ids = {text: i for text, i in vocab.items() if text not in gone}
        data = dict(data) | {"model": model | {"vocab": kept_ids}}

    def without(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if settings is None:
            return None
        named = {role + "_token" for role in ROLES}
        return {
            key: None if key in named and _text(value) in gone else value
            for key, value in settings.items()
        }

    config = without(beside.config)
    if config is not None and beside.rows is not None:
        config[DECODER] = {key: row for key, row in listed.items() if _text(row) not in gone}
    left = {text: i for text, i in (beside.added or {}).items() if text not in gone}
    return data, replace(
        beside,
        config=config,
        roles=without(beside.roles),
        added=None if beside.added is None else left,
    )


def _text(token: object) -> object:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
