"""BitFit by hand; what all methods keep is in test_contract.py."""

from __future__ import annotations

from pathlib import Path

import torch

from minift.checkpoints.open import load_model
from minift.peft.bitfit import BitFit, count
from minift.peft.methods import attach
from minift.peft.slots import changes

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = torch.arange(14).view(2, 7)


def model(name):
    return load_model(GOLDEN / name, dtype=torch.float64)


def test_it_is_training_the_biases_themselves():
    adapted, plain = attach(model("families/bert"), BitFit()), model("families/bert")
    with torch.no_grad():
        for path, _, change in changes(adapted):
            change.d.copy_(torch.linspace(-1, 1, change.d.numel()))
            plain.get_submodule(path).bias.add_(change.d)
    torch.testing.assert_close(adapted(TOKENS), plain(TOKENS), rtol=0, atol=1e-12)
    biases = {n for n, _ in plain.blocks.named_parameters(prefix="blocks") if n.endswith(".bias")}
    assert {f"{path}.bias" for path, _, _ in changes(adapted)} == biases


def test_the_count_by_hand():
    # q, k, v, o, down 24 and up 40; two layer norms of 24; two layers
    assert count(model("families/gpt2"), BitFit()) == 2 * (5 * 24 + 96 + 2 * 24)
    # no biases of its own, and RMS norms: only those of the linears
    assert count(model("llama_gqa"), BitFit()) == 3 * (3 * 24 + 2 * 12 + 2 * 40)
