"""Learning rates by hand; the flat optimizer against torch's, one tensor at a time."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from minift.errors import ConfigError
from minift.train import optimizer as module
from minift.train.optimizer import SCHEDULES, AdamW, learning_rate

ROOT = 2**-0.5  # cos(pi / 4)


@pytest.mark.parametrize(("schedule", "warmup", "steps", "expected"), [
    ("linear", 0, 4, [8, 6, 4, 2]),
    ("linear", 2, 6, [4, 8, 8, 6, 4, 2]),
    ("cosine", 0, 4, [8, 4 + 4 * ROOT, 4, 4 - 4 * ROOT]),
    ("cosine", 1, 3, [8, 8, 4]),
    ("constant", 0, 3, [8, 8, 8]),
    ("constant", 4, 6, [2, 4, 6, 8, 8, 8]),
    ("linear", 0, 1, [8]),
    ("linear", 3, 3, [8 / 3, 16 / 3, 8]),
    ("cosine", 4, 2, [2, 4]),
])  # fmt: skip
def test_rates_by_hand(schedule, warmup, steps, expected):
    found = [learning_rate(schedule, 8.0, warmup, steps, k) for k in range(steps)]
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 10, 100])
def test_rates_rise_to_the_peak_and_never_rise_again(schedule, warmup):
    rates = [learning_rate(schedule, 0.3, warmup, 100, k) for k in range(100)]
    assert all(0 < rate <= 0.3 for rate in rates)
    top = max(warmup - 1, 0)
    assert rates[top] == max(rates) == 0.3
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


SHAPES = [(3, 5), (7,), (40, 30), (1,), (), (0, 4), (6, 2)]
USUAL = {"betas": (0.9, 0.99), "eps": 1e-8, "decay": 0.1}


def made(dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return {f"p{i}": nn.Parameter(value.to(dtype)) for i, value in enumerate(values)}


def fill(parameters, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters.values():
        p.grad = size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def theirs(parameters, ratios, lr):
    rows = [
        {"params": [p], "weight_decay": 0.1 if p.dim() >= 2 else 0.0, "lr": lr * ratios.get(n, 1.0)}
        for n, p in parameters.items()
    ]
    return torch.optim.AdamW(rows, betas=(0.9, 0.99), eps=1e-8)


@pytest.mark.parametrize("small", [2**18, 100, -1])
@pytest.mark.parametrize("clip", [0.0, 1.0, 1e9])
def test_updates_and_norms_are_torchs(clip, small, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)
    mine, other = made(), made()
    ratios = {"p0": 16.0, "p3": 0.5}
    optimizer = AdamW(mine, {mine[n]: r for n, r in ratios.items()}, **USUAL)
    optimizer.set_rate(0.01)
    exact = theirs(other, ratios, 0.01)
    for step in range(6):
        for parameters in (mine, other):
            fill(parameters, step)
        norm = optimizer.clip(clip)
        optimizer.step()
        optimizer.zero_grad()
        if clip:
            expected = torch.nn.utils.clip_grad_norm_(other.values(), clip)
        else:
            expected = torch.nn.utils.get_total_norm([p.grad for p in other.values()])
        exact.step()
        assert norm == pytest.approx(float(expected), rel=1e-12)
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-12)
        assert all(p.grad is None for p in mine.values())
    state = optimizer.state_dict()
    for name, p in other.items():
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[name][key], exact.state[p][key], rtol=0, atol=1e-12)


def test_a_gradient_that_never_came_is_zero(monkeypatch):
    for small in (2**18, -1):
        monkeypatch.setattr(module, "SMALL", small)
        mine, other = made(), made()
        optimizer = AdamW(mine, {}, **USUAL)
        optimizer.set_rate(0.01)
        exact = theirs(other, {}, 0.01)
        for step in range(3):
            for parameters in (mine, other):
                fill(parameters, step)
            if step == 1:
                mine["p2"].grad, mine["p1"].grad = None, None
                other["p1"].grad, other["p2"].grad = (
                    torch.zeros_like(other[f"p{k}"]) for k in (1, 2)
                )
            optimizer.clip(0.0)
            optimizer.step()
            optimizer.zero_grad()
            exact.step()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-12)


def test_gradients_of_two_backward_passes_add_up():
    mine, other = made(), made()
    optimizer = AdamW(mine, {}, **USUAL)
    optimizer.set_rate(0.01)
    exact = theirs(other, {}, 0.01)
    for _ in range(2):
        for parameters in (mine, other):
            for k in (1, 2):
                sum(k * p.sin().sum() for p in parameters.values()).backward()
        optimizer.clip(0.5)
        torch.nn.utils.clip_grad_norm_(other.values(), 0.5)
        for one in (optimizer, exact):
            one.step()
            one.zero_grad()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-12)


def test_a_norm_that_is_not_finite_scales_nothing_and_is_forgotten():
    mine, other = made(), made()
    optimizer = AdamW(mine, {}, **USUAL)
    optimizer.set_rate(0.01)
    fill(mine, 0)
    mine["p1"].grad[2] = float("nan")
    assert optimizer.clip(1.0) != optimizer.clip(1.0)
    optimizer.zero_grad()
    exact = theirs(other, {}, 0.01)
    for parameters in (mine, other):
        fill(parameters, 3)
    optimizer.clip(0.0)
    optimizer.step()
    exact.step()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-12)


def test_the_norm_of_millions_of_float32():
    """Error: ROW-long sums in 8 or more lanes, 128 roundings of 6e-8 each at the worst."""
    mine = made(torch.float32, [(500, 500)] * 8)
    optimizer = AdamW(mine, {}, **USUAL)
    assert [v.numel() for v in optimizer.flat.vectors] == [8 * 250_000 // 1024 * 1024 + 1024]
    fill(mine, 0, 1e-3)
    exact = sum(float(p.grad.double().square().sum()) for p in mine.values()) ** 0.5
    assert optimizer.clip(0.0) == pytest.approx(exact, rel=2e-6)


def test_small_tensors_move_in_together_and_large_ones_stay(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 100)
    mine = made() | {"half": nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))}
    before = {name: p.data_ptr() for name, p in mine.items()}
    optimizer = AdamW(mine, {mine["p6"]: 2.0}, **USUAL)
    assert optimizer.flat.separate == [mine["p2"]]
    assert mine["p2"].data_ptr() == before["p2"]
    # matrices, matrices at twice the rate, vectors, and what is no float64
    assert len(optimizer.flat.vectors) == 4
    assert sorted(str(v.dtype) for v in optimizer.flat.vectors) == ["torch.bfloat16"] + 3 * [
        "torch.float64"
    ]
    assert all(p.data_ptr() % 64 == 0 for p in mine.values())
    where = {p.untyped_storage().data_ptr() for p in mine.values()}
    assert len(where) == 5
    assert AdamW(made(), {}, flat=False, **USUAL).flat.vectors == []


def test_a_shared_parameter_is_trained_once():
    one = made()["p0"]
    optimizer = AdamW({"a": one, "b": one}, {}, **USUAL)
    assert list(optimizer.state_dict()) == ["a"]
    optimizer.set_rate(0.1)
    other = nn.Parameter(one.detach().clone())
    one.grad, other.grad = torch.ones(3, 5).double(), torch.ones(3, 5).double()
    optimizer.clip(0.0)
    optimizer.step()
    theirs({"a": other}, {}, 0.1).step()
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_state_goes_by_name_whatever_the_groups():
    """Four steps in one go are two, saved, and two by an optimizer that groups differently."""
    whole, first, second = made(), made(), made()
    last = dict(reversed(second.items()))
    straight = AdamW(whole, {}, **USUAL)
    begun, ended = AdamW(first, {}, **USUAL), None
    for optimizer in (straight, begun):
        optimizer.set_rate(0.01)
    for step in range(4):
        fill(whole, step)
        straight.clip(1.0)
        straight.step()
        if step == 2:
            state = copy.deepcopy(begun.state_dict())
            with torch.no_grad():
                for name, p in second.items():
                    p.copy_(first[name])
            ended = AdamW(last, {}, flat=False, **USUAL)
            ended.set_rate(0.01)
            ended.load_state_dict(state)
        fill(second if step > 1 else first, step)
        one = ended if step > 1 else begun
        one.clip(1.0)
        one.step()
        one.zero_grad()
    for name, p in whole.items():
        torch.testing.assert_close(second[name], p, rtol=0, atol=1e-12)
    assert {state["step"] for state in ended.state_dict().values()} == {4}


def test_state_that_does_not_fit_is_refused_whole():
    optimizer = AdamW(made(), {}, **USUAL)
    state = optimizer.state_dict()
    assert {one["step"] for one in state.values()} == {0}
    bad = {name: dict(one) for name, one in state.items()}
    del bad["p1"]
    bad["other"] = {}
    bad["p0"]["exp_avg"] = torch.ones(5, 3)
    del bad["p6"]["exp_avg_sq"]
    bad["p2"] |= {"step": 3, "exp_avg": torch.ones(40, 30)}
    with pytest.raises(ConfigError) as error:
        optimizer.load_state_dict(bad)
    text = str(error.value)
    assert "p1: missing" in text
    assert "other: found no such trainable" in text
    assert "p0: exp_avg found the shape (5, 3), allowed (3, 5)" in text
    assert "p6: exp_avg_sq is missing" in text
    assert "step: found 0, 3, allowed one for all" in text
    assert not state["p2"]["exp_avg"].any()


def test_released_parameters_are_ordinary_again():
    mine = made()
    optimizer = AdamW(mine, {}, **USUAL)
    optimizer.set_rate(0.1)
    fill(mine, 0)
    optimizer.clip(1.0)
    optimizer.step()
    seen = {name: p.detach().clone() for name, p in mine.items()}
    flat = [weakref.ref(v) for v in optimizer.flat.vectors]
    optimizer.release()
    gc.collect()
    assert flat
    assert all(vector() is None for vector in flat)
    for name, p in mine.items():
        assert torch.equal(p, seen[name])
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
        assert p.is_leaf
        assert p.requires_grad
        assert p.grad is None


def test_only_matrices_decay():
    mine = {"matrix": nn.Parameter(torch.ones(2, 2)), "vector": nn.Parameter(torch.ones(3))}
    optimizer = AdamW(mine, {}, betas=(0.9, 0.99), eps=1e-8, decay=0.5)
    optimizer.set_rate(0.1)
    optimizer.clip(0.0)
    optimizer.step()
    assert mine["matrix"].tolist() == [[pytest.approx(0.95)] * 2] * 2  # 1 - lr * decay
    assert mine["vector"].tolist() == [1.0] * 3


def test_two_updates_by_hand():
    """Algorithm 2 on one number: g = 1 then g = -3."""
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = AdamW({"w": weight}, {}, betas=(0.5, 0.75), eps=0.0, decay=0.0)
    optimizer.set_rate(0.1)
    weight.grad = torch.tensor([[1.0]])
    optimizer.clip(0.0)
    optimizer.step()
    assert weight.item() == pytest.approx(1.9)  # m/(1-.5) = 1, v/(1-.25) = 1
    weight.grad = torch.tensor([[-3.0]])
    optimizer.clip(0.0)
    optimizer.step()
    # m = 0.25 - 1.5 = -1.25, over 0.75; v = 0.1875 + 2.25 = 2.4375, over 0.4375
    step = (-1.25 / 0.75) / (2.4375 / 0.4375) ** 0.5
    assert weight.item() == pytest.approx(1.9 - 0.1 * step)
