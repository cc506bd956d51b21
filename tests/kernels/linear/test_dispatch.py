"""Which form linears get, and what is left as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.choice import using
from minift.kernels.linear import packed, straight
from minift.kernels.linear.dispatch import few_rows
from minift.kernels.linear.packed import CALLS, Packed
from minift.kernels.linear.straight import Straight
from minift.kernels.quantized.linear import QuantizedLinear


def linear(dtype=torch.bfloat16):
    return nn.Linear(32, 16, dtype=dtype)


@pytest.mark.skipif(not packed.possible(), reason="this CPU or torch packs no bf16")
def test_bf16_that_is_used_often_enough():
    assert isinstance(few_rows([linear(), linear()], CALLS), Packed)
    assert few_rows([linear()], CALLS - 1) is None  # fewer products than it costs


@pytest.mark.skipif(not straight.possible(), reason="this torch has no such operator")
def test_float32_at_once():
    assert isinstance(few_rows([linear(torch.float32)], 1), Straight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_stay(dtype):
    assert few_rows([linear(dtype)], 1000) is None
    assert few_rows([linear(), linear(torch.float32)], 1000) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_quantised_layers_and_subclasses_stay(dtype, monkeypatch):
    watched = linear(dtype)
    watched.register_forward_hook(lambda *_: None)
    assert few_rows([linear(dtype), watched], 1000) is None
    assert few_rows([QuantizedLinear.of("int8", linear(dtype).weight)], 1000) is None

    class Other(nn.Linear):
        pass

    assert few_rows([Other(4, 4, dtype=dtype)], 1000) is None
    with using("reference"):
        assert few_rows([linear(dtype)], 1000) is None
    for file in (packed, straight):
        monkeypatch.setattr(file, "possible", lambda: False)
    assert few_rows([linear(dtype)], 1000) is None
