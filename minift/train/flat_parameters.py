"""Many small parameters as a few long vectors, so that one operation updates all of them.

    parameters   A (8, 64)  B (64, 8)  ...        views into
    vector       (N,), one for each group, dtype and device; its .grad is a vector too

An adapter is hundreds of small tensors, and an operation on a small tensor costs more than its
numbers. A tensor above `most` numbers stays where it is, so that full fine-tuning needs no second
copy of anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNED = 16  # numbers, 64 bytes of float32: where torch would have put a tensor of its own
ROW = 1024  # of a flat vector, when its norm is taken


@dataclass(frozen=True)
class FlatView:
    """Where a parameter's numbers are while it is trained: in a flat vector, or its own."""

    parameter: nn.Parameter
    storage: nn.Parameter  # the flat vector (N,), or the parameter itself
    begin: int = 0

    @property
    def is_flat(self) -> bool:
        return self.storage is not self.parameter

    def view(self, whole: Tensor) -> Tensor:
        """The parameter's part of the storage's data, gradient or moment."""
        if not self.is_flat:
            return whole
        return whole[self.begin : self.begin + self.parameter.numel()].view(self.parameter.shape)


class FlatParameters:
    """Moves the small parameters of each group into flat vectors until `release`.

    Gradients arrive in the parameters' own `.grad`, as autograd (or DDP) hands them over; `gather`
    copies them into the vectors' `.grad`. One that never came counts as zero.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], most: int):
        """`most`: numbers of the largest parameter that moves into a vector; -1: none moves."""
        self.views: dict[nn.Parameter, FlatView] = {}
        self.groups: list[list[nn.Parameter]] = []  # the storages of each
        for parameters in groups:
            views = flatten(parameters, most)
            self.views |= views
            self.groups.append(list(dict.fromkeys(view.storage for view in views.values())))
        self.storages = [storage for group in self.groups for storage in group]
        self.vectors = [storage for storage in self.storages if storage not in self.views]
        self.separate = [storage for storage in self.storages if storage in self.views]
        # A flattened parameter, and its part of the flat gradient.
        self.joined: list[tuple[nn.Parameter, Tensor]] = []
        for parameter, view in self.views.items():
            if view.is_flat:
                self.joined.append((parameter, view.view(gradient(view.storage))))
                parameter.data = view.view(view.storage.data)

    @torch.no_grad()
    def gather(self) -> None:
        """Move the gradients into the vectors' `.grad`; those of the parameters are gone."""
        for parameter in self.separate:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.joined:
            parameters, parts = zip(*self.joined, strict=True)
            came = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            torch._foreach_copy_(parts, came)
        for parameter, _ in self.joined:
            parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """The L2 norm of all gathered gradients, a scalar on their device."""
        return torch.nn.utils.get_total_norm(
            [row_norms(gradient(v)) for v in self.vectors] + [gradient(p) for p in self.separate]
        )

    def clip(self, most: float, norm: Tensor) -> None:
        """Scale the gathered gradients, whose norm this is, to a norm of at most `most`."""
        torch.nn.utils.clip_grads_with_norm_(self.storages, most, norm)

    def zero_grad(self) -> None:
        """Drop the parameters' gradients. (A vector's are overwritten by the next `gather`.)"""
        for parameter in self.views:
            parameter.grad = None

    @torch.no_grad()
    def release(self) -> None:
        """End: the parameters are ordinary tensors of their own again, without gradients."""
        self.zero_grad()
        for parameter, _ in self.joined:
            parameter.data = parameter.data.clone()
        self.views, self.groups, self.joined = {}, [], []
        self.storages, self.vectors, self.separate = [], [], []


def flatten(parameters: Sequence[nn.Parameter], most: int) -> dict[nn.Parameter, FlatView]:
    """A view for each: those of at most `most` numbers share a vector a dtype and device."""
    views = {parameter: FlatView(parameter, parameter) for parameter in parameters}
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.numel() <= most:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for (dtype, device), members in kinds.items():
        begins, end = [], 0
        for parameter in members:
            begins.append(end)
            end += -(-parameter.numel() // ALIGNED) * ALIGNED
        vector = nn.Parameter(torch.zeros(-(-end // ROW) * ROW, dtype=dtype, device=device))
        vector.grad = torch.zeros_like(vector)
        for parameter, begin in zip(members, begins, strict=True):
            view = FlatView(parameter, vector, begin)
            view.view(vector.data).copy_(parameter.data)
            views[parameter] = view
    return views


def gradient(storage: nn.Parameter) -> Tensor:
    assert storage.grad is not None
    return storage.grad


def row_norms(vector: Tensor) -> Tensor:
    """The norms of a flat vector's rows: summed in one go, float32 would lose four digits."""
    return torch.linalg.vector_norm(vector.view(-1, ROW), dim=1)
