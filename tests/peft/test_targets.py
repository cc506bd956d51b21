"""Targets in a few words."""

from __future__ import annotations

import pytest

from minift.peft.targets import in_short

NAMES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.out.down")


def paths(layers, names, form="blocks.{}.{}"):
    return [form.format(i, name) for i in range(layers) for name in names]


@pytest.mark.parametrize(("targets", "text"), [
    (("all",), "all linears"),
    (("attention", "down"), "attention, down"),
    (paths(30, NAMES), "all linears of 30 layers"),
    (paths(30, ("attn.q", "attn.v")), "q, v of 30 layers"),
    (paths(1, ("attn.q",)), "q of 1 layer"),
    ([*paths(3, ("attn.q",)), "blocks.0.mlp.up", "embed"], "q of 3 layers and up of 1 layer "
     "and embed"),
    (("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), "all linears"),
    (paths(2, ("self_attn.q_proj", "self_attn.v_proj"), "model.layers.{}.{}"),
     "q_proj, v_proj of 2 layers"),
    (paths(2, ("attention.self.query",), "bert.encoder.layer.{}.{}"), "query of 2 layers"),
    ([f"t{i}" for i in range(90)], "t0, t1, t2, t3, t4, t5, t6, t7, 82 more"),
])  # fmt: skip
def test_in_short(targets, text):
    assert in_short(targets) == text
