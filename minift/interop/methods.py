"""Which twin says a method in PEFT's files: `interop/METHOD.py` beside `peft/METHOD.py`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

from minift.interop.peft_format import Format, SoftPromptFormat
from minift.peft.methods import METHODS


def _found() -> dict[type, Format | SoftPromptFormat]:
    """A method without a twin has no place in PEFT's files; it may have one in AdapterHub's."""
    formats: dict[type, Format | SoftPromptFormat] = {}
    for kind, module in METHODS.values():
        twin = f"{__package__}.{module.__name__.rpartition('.')[2]}"
        if find_spec(twin) is not None:
            formats[kind] = import_module(twin).FILE
    return formats


FORMATS: Mapping[type, Format | SoftPromptFormat] = _found()
BY_TYPE: Mapping[str, Format | SoftPromptFormat] = {
    file.peft_type: file for file in FORMATS.values()
}
