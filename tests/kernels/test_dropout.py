"""Seeds of dropout masks: a function of their key, and of torch's generator without one."""

from __future__ import annotations

import pytest
import torch

from minift.data.batches import splitmix64
from minift.kernels.dropout import keyed, mix, seed, seed_on


def test_a_hash_of_one_number_is_splitmix64s():
    for state in (0, 1234567, 2**64 - 1):
        assert mix(state, 0) == int(splitmix64(state, 1)[0])


def test_a_seed_is_a_function_of_the_key_and_the_site():
    found = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0), (-1, 0, 0)]:
        with keyed(*key):
            torch.rand(3)  # other generators are of no account
            for site in (0, 1, 2**32 - 1):
                assert found.setdefault((key, site), seed(site)) == seed(site)
                assert seed_on(torch.device("cpu"), site).tolist() == [seed(site)]
    assert len(set(found.values())) == 15
    assert all(0 <= value < 2**62 for value in found.values())


def test_keys_nest_and_end():
    with keyed(1):
        outer = seed(3)
        with keyed(2):
            assert seed(3) != outer
        assert seed(3) == outer
        with pytest.raises(KeyError), keyed(2):
            raise KeyError
        assert seed(3) == outer


def test_without_a_key_torchs_generator_draws():
    for draw in (seed, lambda site: seed_on(torch.device("cpu"), site).item()):
        torch.manual_seed(0)
        first = [draw(1), draw(1)]
        torch.manual_seed(0)
        assert first[0] != first[1]
        assert first == [draw(1), draw(1)]
