"""Weights that are not finite are found wherever they stand, and named."""

from __future__ import annotations

import pytest
import torch

from minift.errors import ConfigError
from minift.model.finite import check_finite, is_finite

KINDS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 4, 11])
def test_one_wrong_number_is_found(dtype, value, place):
    tensor = torch.linspace(-3, 3, 12, dtype=dtype).view(3, 4)
    assert is_finite(tensor)
    tensor.view(-1)[place] = value
    assert not is_finite(tensor)
    assert not is_finite(tensor.T)


def test_what_has_no_such_numbers_is_finite():
    for tensor in (torch.empty(0), torch.empty(3, 0), torch.tensor(1.5), torch.ones(2).bool(),
                   torch.arange(3), torch.finfo(torch.float32).max * torch.ones(2)):  # fmt: skip
        assert is_finite(tensor)


def test_the_first_tensor_is_named_in_one_line():
    wrong = torch.tensor([1, float("nan")])
    tensors = {"a": torch.ones(2), "b\n\x1b": wrong, "c": wrong}
    with pytest.raises(ConfigError) as caught:
        check_finite("save", tensors.items())
    assert str(caught.value) == r'save: tensor "b\n\x1b" holds a weight that is not finite'
