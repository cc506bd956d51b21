"""Transformers on the meta device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from minift.checkpoints.open import load_model
from minift.model.on_meta import on_meta

GOLDEN = Path(__file__).parents[1] / "golden"


def test_names_and_shapes_are_those_of_a_filled_one():
    model = load_model(GOLDEN / "llama_gqa")
    empty = on_meta(model.config, "somewhere")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes
    assert all(p.is_meta for p in empty.parameters())
    assert empty.source == "somewhere"


def test_torchs_compiler_is_not_imported():
    """By nothing that makes one: reading, saving, merging, a head for labels."""
    program = """
import sys, tempfile, minift
from minift.checkpoints.open import load_model
from minift.checkpoints.save import is_changed
model = load_model(sys.argv[1])
assert not is_changed(model)
minift.with_labels(model, ("a", "b"))
minift.merge(minift.attach(model, minift.LoRA(rank=2)))
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(GOLDEN / "llama_gqa")]
    subprocess.run(command, check=True)
