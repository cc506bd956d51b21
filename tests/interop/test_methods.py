"""The twins of the methods."""

from __future__ import annotations

from pathlib import Path

from minift.interop import methods
from minift.interop.methods import BY_TYPE, FORMATS
from minift.peft.bottleneck import Bottleneck
from minift.peft.methods import METHODS


def test_every_method_but_adapterhubs_has_a_twin():
    assert {kind for kind, _ in METHODS.values()} - set(FORMATS) == {Bottleneck}
    assert set(BY_TYPE) == {"LORA", "IA3", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "BITFIT"}


def test_a_twin_has_the_name_of_its_method():
    folder = Path(methods.__file__).parent
    for kind, module in METHODS.values():
        twin = folder / f"{module.__name__.rpartition('.')[2]}.py"
        assert twin.exists() == (kind in FORMATS)
