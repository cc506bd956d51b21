"""What is attached to a model is found by its protocol, whatever it is."""

from __future__ import annotations

import copy

import torch
from torch import nn

import minift
from minift.generation.cache import KVCache
from minift.generation.decode import decode, distinct_rows
from minift.generation.decode_weights import decode_weights
from minift.generation.step import step_of
from minift.model.config import ModelConfig
from minift.model.extension import LinearChange
from minift.model.transformer import Transformer

TINY = ModelConfig("llama", 50, 24, 2, 4, 2, 6, 20, 64)


class Toy:
    """Adds nothing, or a constant to every hidden state."""

    def __init__(self, constant=0.0, row_keys=None):
        self.constant, self.row_keys = constant, row_keys

    @property
    def is_identity(self):
        return self.constant == 0

    def after(self, model, inputs, out):
        return out + self.constant


def made(*toys):
    torch.manual_seed(0)
    model = Transformer(TINY).eval().requires_grad_(False)
    for toy in toys:
        model.register_forward_hook(toy.after)
        model.extensions.append(toy)
    return model


@torch.no_grad()
def steps(model):
    with decode_weights(model, 1000):
        model(torch.tensor([[1, 2]]), cache=KVCache(TINY, 1, 4))
        return step_of(model) is not None


def test_only_hooks_of_extensions_that_change_nothing_are_bypassed():
    assert steps(made())
    assert steps(made(Toy()))
    assert not steps(made(Toy(1.0)))
    assert not steps(made(Toy(), Toy(1.0)))
    model = made(Toy())
    model.register_forward_hook(Toy().after)  # of nothing that is attached
    assert not steps(model)


def test_equal_prompts_are_one_row_only_where_every_key_is_equal():
    prompts = [[1], [1], [2], [1]]
    assert distinct_rows(made(), prompts) == ([0, 2], [0, 0, 1, 0])
    assert distinct_rows(made(Toy()), prompts) == ([0, 2], [0, 0, 1, 0])
    keyed = made(Toy(row_keys="aaab"), Toy())
    assert distinct_rows(keyed, prompts) == ([0, 2, 3], [0, 0, 1, 2])
    both = made(Toy(row_keys="aaab"), Toy(row_keys="xyyx"))
    assert distinct_rows(both, prompts) == ([0, 1, 2, 3], [0, 1, 2, 3])
    other = made(Toy(row_keys="ab"))  # of another batch
    assert distinct_rows(other, prompts) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert decode(keyed, prompts, max_new_tokens=3) == decode(made(), prompts, max_new_tokens=3)


def test_what_minift_attaches_is_of_these_types():
    model = minift.attach(made(), minift.LoRA(rank=2), name="a")
    minift.attach(model, minift.LoRA(rank=2), name="b")
    [extension] = model.extensions
    assert extension.is_identity
    assert extension.row_keys is None
    with minift.rows(model, ["a", None]):
        assert not extension.is_identity
        assert extension.row_keys == ("a", None)
    assert isinstance(model.blocks[0].attn.qkv.changes["q"], LinearChange)
    assert not isinstance(nn.Linear(2, 2), LinearChange)


def test_a_copy_has_a_copy_of_its_extensions():
    model = minift.attach(made(), minift.LoRA(rank=2))
    twin = copy.deepcopy(model)
    assert twin.extensions == [twin.adapters]
    assert twin.extensions != model.extensions
    assert not any("extension" in name for name in model.state_dict())
