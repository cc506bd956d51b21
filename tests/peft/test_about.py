"""Every method says what it is, as its docstring does, and shortly enough for a table."""

from __future__ import annotations

from dataclasses import fields

import pytest

from minift.peft.about import About
from minift.peft.methods import METHODS


@pytest.mark.parametrize("word", METHODS)
def test_the_facts_of_a_method_are_those_of_its_docstring(word):
    module = METHODS[word][1]
    about = module.ABOUT
    assert isinstance(about, About)
    text = " ".join(module.__doc__.split())
    assert " ".join(about.equation.split()) in text
    assert about.paper in text


@pytest.mark.parametrize("word", METHODS)
def test_every_fact_fits_its_line(word):
    about = METHODS[word][1].ABOUT
    assert all(getattr(about, item.name) != "" for item in fields(about))
    assert len(about.changes) <= 20
    for text in (about.equation, about.formula, about.merging, about.use):
        assert len(text) <= 87
