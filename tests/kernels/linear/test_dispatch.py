"""What is packed, and what is left as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.choice import using
from minift.kernels.linear import dispatch
from minift.kernels.linear.dispatch import packed
from minift.kernels.linear.packed import CALLS, possible
from minift.kernels.quantized.linear import QuantizedLinear


def linear(dtype=torch.bfloat16):
    return nn.Linear(32, 16, dtype=dtype)


@pytest.mark.skipif(not possible(), reason="this CPU or torch packs no bf16")
def test_bf16_that_is_used_often_enough():
    assert packed([linear(), linear()], CALLS) is not None
    assert packed([linear()], CALLS - 1) is None  # fewer products than it costs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_dtypes_stay(dtype):
    assert packed([linear(dtype)], 1000) is None
    assert packed([linear(), linear(dtype)], 1000) is None


def test_hooks_quantised_layers_and_subclasses_stay(monkeypatch):
    watched = linear()
    watched.register_forward_hook(lambda *_: None)
    assert packed([linear(), watched], 1000) is None
    assert packed([QuantizedLinear.of("int8", linear().weight)], 1000) is None

    class Other(nn.Linear):
        pass

    assert packed([Other(4, 4, dtype=torch.bfloat16)], 1000) is None
    with using("reference"):
        assert packed([linear()], 1000) is None
    monkeypatch.setattr(dispatch, "possible", lambda: False)
    assert packed([linear()], 1000) is None
