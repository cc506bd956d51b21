"""The choice of kernels is a block's, and what it held before comes back."""

from __future__ import annotations

from contextlib import suppress

import pytest

from minift.errors import ConfigError
from minift.kernels.choice import fused, using


def test_a_choice_ends_with_its_block_even_by_an_error():
    assert fused()
    with using("reference"):
        assert not fused()
        with using("auto"):
            assert fused()
        assert not fused()
    assert fused()
    with suppress(KeyError), using("reference"):
        raise KeyError
    assert fused()


def test_an_unknown_choice_names_the_known_ones():
    wanted = pytest.raises(ConfigError, match="kernels: found triton, allowed auto, reference")
    with wanted, using("triton"):
        pass
