"""Rows of the token table in PEFT's files: `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from minift.errors import one_line
from minift.interop.module_names import ModuleNames
from minift.interop.peft_format import Problems
from minift.peft.slots import WHOLE
from minift.peft.token_rows import TableRows, table_of

OPTION = "trainable_token_indices"
LEAF = "token_adapter.trainable_tokens_delta"  # whole rows, in spite of its name


def read(
    data: Mapping[str, Any], module_names: ModuleNames | None, problems: Problems
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(tokens, where): a list of ids is the table's; an object has one for each module."""
    given = data.get(OPTION)
    if given in (None, [], {}):
        return (), WHOLE
    each: dict[str, object] = {}
    if not isinstance(given, dict):
        each["embed"] = given
    else:
        for module, ids in given.items():
            found = (
                [t.ours[0] for t in module_names.matching(module)]
                if module_names is not None
                else []
            )
            if module_names is not None and (len(found) != 1 or table_of(found[0]) not in WHOLE):
                problems.append(f"{OPTION} names {one_line(module)}, which is no table of tokens")
            each[table_of(found[0]) if found else module] = ids
    lists = list(each.values())
    if any(not isinstance(ids, list) or any(type(t) is not int for t in ids) for ids in lists):
        problems.append(f"{OPTION} is {one_line(given)}, not lists of ids")
    elif any(ids != lists[0] for ids in lists):
        problems.append(f"{OPTION} has other ids for each module; minift trains the same of all")
    else:
        assert isinstance(lists[0], list)
        return tuple(lists[0]), tuple(w for w in WHOLE if w in each) or WHOLE
    return (), WHOLE


def write(module_names: ModuleNames, found: Mapping[str, nn.Module]) -> dict[str, Any]:
    """`found` without a head that is tied: a list is enough then, and what PEFT itself writes."""
    ids = {
        module_names.by_ours[path].path.rpartition(".")[2]: list(change.tokens)
        for path, change in found.items()
        if isinstance(change, TableRows)
    }
    if len(ids) == 1 and "embed" in found:
        return {OPTION: next(iter(ids.values()))}
    return {OPTION: ids or None}
