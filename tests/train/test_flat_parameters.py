"""Parameters in flat vectors: the numbers, gradients and storage of each by hand."""

from __future__ import annotations

import torch
from torch import nn

from minift.train.flat_parameters import ALIGNED, ROW, FlatParameters, flatten


def parameters():
    return [nn.Parameter(torch.full(shape, k + 1.0)) for k, shape in enumerate([(2, 3), (), (50,)])]


def test_small_parameters_are_views_into_one_vector():
    given = parameters()
    views = flatten(given, 10)
    assert [views[p].begin for p in given] == [0, ALIGNED, 0]
    assert [views[p].is_flat for p in given] == [True, True, False]
    vector = views[given[0]].storage
    assert vector.shape == (ROW,)
    assert vector[:6].tolist() == [1.0] * 6
    assert vector[ALIGNED] == 2.0
    assert views[given[0]].view(vector).shape == (2, 3)


def test_gradients_are_gathered_clipped_and_dropped():
    given = parameters()
    flat = FlatParameters([given], 10)
    given[0].grad = torch.full((2, 3), 2.0)
    given[2].grad = torch.ones(50)
    flat.gather()
    assert [p.grad is None for p in given] == [True, True, False]
    norm = flat.gradient_norm()
    torch.testing.assert_close(norm, torch.tensor((6 * 4 + 50.0) ** 0.5))
    flat.clip(1.0, norm)
    torch.testing.assert_close(flat.gradient_norm(), torch.tensor(1.0))
    flat.zero_grad()
    assert all(p.grad is None for p in given)
    with torch.no_grad():
        flat.vectors[0].add_(1)
    assert given[0].tolist() == [[2.0] * 3] * 2
    flat.release()
    assert given[0].untyped_storage().nbytes() == 24
    assert given[0].tolist() == [[2.0] * 3] * 2


def test_two_groups_never_share_a_vector():
    a, b, _ = parameters()
    flat = FlatParameters([[a], [b]], 10)
    assert [len(group) for group in flat.groups] == [1, 1]
    assert len(flat.vectors) == 2
