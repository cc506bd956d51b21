"""What the files beside a vocabulary say, of whatever kind it is: which tokens have which role.

tokenizer_config.json, special_tokens_map.json and added_tokens.json have said it by turns since
2018. They are read as transformers 5 reads them: where tokenizer_config.json lists the added tokens
(`added_tokens_decoder`), it alone counts; in older folders the map goes before it. A role that is
named by "" or null has no token. What no role and no flag says is passed over, whatever it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minift.errors import FormatError
from minift.tokenizers.vocabulary import FLAGS, MOST_TOKENS, ROLES, Added, field_of

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
ADDED = "added_tokens.json"
DECODER, MORE = "added_tokens_decoder", ("extra_special_tokens", "additional_special_tokens")

TRUE_OR_FALSE = (*FLAGS, "special")


@dataclass(frozen=True)
class Beside:
    """The parsed files beside a vocabulary; None for one that is not there."""

    folder: str
    config: Mapping[str, Any] | None = None  # tokenizer_config.json
    roles: Mapping[str, Any] | None = None  # special_tokens_map.json
    added: Mapping[str, Any] | None = None  # added_tokens.json
    model: Mapping[str, Any] = field(default_factory=dict)  # config.json

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    @property
    def rows(self) -> Mapping[str, Any] | None:
        """The added tokens of tokenizer_config.json, by id."""
        return field_of(self.config or {}, DECODER, dict, self.path(CONFIG), none=True)

    def settings(self) -> dict[str, Any] | None:
        """tokenizer_config.json with each role's token as a text or None; None: no file says it."""
        if self.config is None and self.roles is None:
            return None
        settings = dict(self.config or {})
        for role in ROLES:
            key = role + "_token"
            if key in settings:
                settings[key] = named(settings[key], self.path(CONFIG), key)
            if self.roles and key in self.roles and (self.rows is None or key not in settings):
                settings[key] = named(self.roles[key], self.path(MAP), key)
        if self.roles and self.rows is None:
            settings = {key: self.roles[key] for key in MORE if key in self.roles} | settings
        return settings

    def more_special(self, settings: Mapping[str, Any]) -> list[str]:
        """The special tokens that have no role, by name."""
        found: list[str] = []
        for key in MORE:
            value = settings.get(key)
            if value is None:
                continue
            if not isinstance(value, list | dict):
                allowed = "a list of tokens, or an object of named ones"
                raise FormatError(self.path(CONFIG), key, value, allowed, "bad-type")
            rows = value.values() if isinstance(value, dict) else value
            texts = [named(row, self.path(CONFIG), key) for row in rows]
            found += [text for text in texts if text is not None]
        for key, value in settings.items():  # image_token and the like
            if key.endswith("_token") and key[: -len("_token")] not in ROLES:
                found += [value] if isinstance(value, str) and value else []
        return found

    def listed(self, special: set[str]) -> dict[int, Added]:
        """The added tokens that tokenizer_config.json or added_tokens.json lists, by id."""
        path, found = self.path(CONFIG), dict[int, Added]()
        for key, row in (self.rows or {}).items():
            at = f"{DECODER}.{key}"
            if type(row) is not dict:
                raise FormatError(path, at, row, "an object", "bad-type")
            i, text = _id(key, path, at), field_of(row, "content", str, path, at=at + ".")
            flag = {f: field_of(row, f, bool, path, at=at + ".", none=True) for f in TRUE_OR_FALSE}
            if text:
                found[i] = Added(text, bool(flag["special"]), tuple(f for f in FLAGS if flag[f]))
        if self.rows is not None:
            return found
        for text, i in (self.added or {}).items():
            path, at = self.path(ADDED), f'"{text}"'
            if type(i) is not int or not 0 <= i < MOST_TOKENS:
                raise FormatError(path, at, i, f"an id, 0 to {MOST_TOKENS - 1:,}", "out-of-range")
            if i in found:
                raise FormatError(path, at, f"{i} again", "each id once", "dup-key")
            if text:
                hidden = text in special
                found[i] = Added(text, hidden, () if hidden else ("normalized",))
        return found


def named(value: object, path: str, key: str) -> str | None:
    """The text of a token, which is written as a text or as an object with a content."""
    text: object = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str):
        return text or None
    if value is None:
        return None
    raise FormatError(path, key, value, "a token's text, or null", "bad-type")


def _id(key: str, path: str, at: str) -> int:
    i = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
    if not 0 <= i < MOST_TOKENS:
        raise FormatError(path, at, key, f"an id, 0 to {MOST_TOKENS - 1:,}", "out-of-range")
    return i
