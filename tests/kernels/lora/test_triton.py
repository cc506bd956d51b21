"""Triton's group, interpreted, is the readable one: values and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.lora import reference
from minift.kernels.lora.fused import Group, Products, plan
from minift.kernels.lora.reference import Adapted
from minift.kernels.quantized.linear import QuantizedLinear

OUT = (9, 3, 21)


@pytest.fixture
def form(interpreted, monkeypatch):
    found = interpreted("lora.triton")
    # Tiles as small as they may be, so that small inputs have several each way.
    monkeypatch.setattr(found, "ROWS", 16)
    monkeypatch.setattr(found, "WIDEST", 16)
    return found


def drawn(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def group(width, ranks, dtype=torch.float64, biased=True, drop=0.0, base=None):
    """Linears of one input; a rank of 0 is a linear without a change."""
    generator, members = torch.Generator().manual_seed(width), []
    wide = torch.promote_types(dtype, torch.float32)
    for k, (out, rank) in enumerate(zip(OUT, ranks, strict=False)):
        linear = nn.Linear(width, out, bias=biased).to(dtype).requires_grad_(False)
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(drawn(generator, *p.shape))
        if base is not None:
            linear = QuantizedLinear.of(base, linear.weight, linear.bias)
        thin = [drawn(generator, rank, width), drawn(generator, out, rank)] if rank else []
        A, B = (t.to(wide).requires_grad_() for t in thin) if rank else (None, None)
        members.append(Adapted(linear, A, B, 0.75 + k, drop))
    return members


def results(form, x, members):
    """Every output, dx if x learns, and the gradients of every A and B."""
    ys = form.adapted_linears(x, members)
    ys = [y for y, m in zip(ys, members, strict=True) if x.requires_grad or m.A is not None]
    wanted = [t for m in members for t in (m.A, m.B) if t is not None and t.requires_grad]
    wanted += [x] if x.requires_grad else []
    gs = [torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape) for y in ys]
    found = torch.autograd.grad(ys, wanted, [g.to(y.dtype) for g, y in zip(gs, ys, strict=True)])
    return [*ys, *found]


def alike(ours, twins, limit):
    for a, b in zip(ours, twins, strict=True):
        assert a.dtype == b.dtype
        size = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=limit * size)


@pytest.mark.parametrize("ranks", [(1,), (8, 8, 8), (64, 1, 7), (0, 4, 0), (0, 0)])
@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 1), (3, 7), (1, 128)])
def test_values_and_all_gradients(form, B, T, ranks):
    x = drawn(torch.Generator().manual_seed(T), B, T, 21).requires_grad_()
    members = group(21, ranks)
    alike(results(form, x, members), results(reference, x, members), 1e-12)


def test_as_many_parts_as_a_gpu_takes_or_one(form, monkeypatch):
    x = drawn(torch.Generator().manual_seed(1), 200, 40).requires_grad_()
    members = group(40, (2, 0, 17))
    expected = results(reference, x, members)
    for programs in (1, 7, 256):
        monkeypatch.setattr(form, "PROGRAMS", programs)
        alike(results(form, x, members), expected, 1e-12)


@pytest.mark.parametrize("base", [None, "int8", "nf4"])
@pytest.mark.parametrize("biased", [False, True])
def test_without_dx_without_biases_and_on_few_bits(form, base, biased):
    members = group(64, (8, 0, 2), biased=biased, base=base)
    for learns in (False, True):
        x = drawn(torch.Generator().manual_seed(1), 2, 5, 64).requires_grad_(learns)
        alike(results(form, x, members), results(reference, x, members), 1e-12)


def test_inputs_that_lie_apart_and_adapters_that_do_not_learn(form):
    members = group(11, (2, 3, 4))
    generator = torch.Generator().manual_seed(2)
    across = drawn(generator, 11, 4, 6).permute(2, 1, 0).requires_grad_()
    alike(results(form, across, members), results(reference, across, members), 1e-12)
    flat = drawn(generator, 11, 20).T.requires_grad_()  # its columns apart: no copy is made
    alike(results(form, flat, members), results(reference, flat, members), 1e-12)
    for member in members:
        member.A.requires_grad_(False), member.B.requires_grad_(False)
    alike(results(form, across, members), results(reference, across, members), 1e-12)


def test_a_gradient_that_is_one_number_everywhere(form):
    """As `sum` sends it: no strides at all."""
    x, members = drawn(torch.Generator().manual_seed(2), 6, 11).requires_grad_(), group(11, (3, 2))
    wanted = [x, *(t for m in members for t in (m.A, m.B))]
    found, expected = (
        torch.autograd.grad(sum(y.sum() for y in f.adapted_linears(x, members)), wanted)
        for f in (form, reference)
    )
    alike(found, expected, 1e-12)


def test_no_rows_at_all(form):
    x = torch.zeros(0, 11, dtype=torch.float64, requires_grad=True)
    for drop in (0.0, 0.5):
        members = group(11, (2, 2), drop=drop)
        ys = form.adapted_linears(x, members)
        assert [y.shape for y in ys] == [(0, 9), (0, 3)]
        wanted = [x, *(t for m in members for t in (m.A, m.B))]
        found = torch.autograd.grad(sum(y.sum() for y in ys), wanted)
        assert [g.shape for g in found] == [t.shape for t in wanted]
        assert not any(g.any() for g in found)


def test_float32_is_within_its_rounding(form):
    x = drawn(torch.Generator().manual_seed(3), 3, 64, 48).requires_grad_()
    exact = results(reference, x, group(48, (8, 8, 8)))
    single = x.detach().float().requires_grad_()
    alike([t.double() for t in results(form, single, group(48, (8, 8, 8), torch.float32))],
          exact, 1e-5)  # fmt: skip


def test_bf16_is_near_the_truth_and_dA_and_dB_are_not_rounded_to_it(form):
    """A, B, t and u are rounded for the products, each to 2^-9 on the whole."""
    x = drawn(torch.Generator().manual_seed(3), 3, 64, 48).bfloat16().requires_grad_()
    members = group(48, (8, 8, 8), torch.bfloat16)
    wide = group(48, (8, 8, 8))
    for member, twin in zip(wide, members, strict=True):
        member.linear.load_state_dict(twin.linear.state_dict())
        member.A.data.copy_(twin.A.data), member.B.data.copy_(twin.B.data)
    exact = results(reference, x.detach().double().requires_grad_(), wide)
    found = results(form, x, members)
    for a, e in zip(found, exact, strict=True):
        assert (a.double() - e).norm() < 1e-2 * e.norm()
    dA = found[3]
    assert dA.dtype == torch.float32
    assert not torch.equal(dA, dA.bfloat16().float())


def mask_of(form, x, drop, seed):
    """What the kernels keep of x, read off a change that is the identity."""
    width = x.shape[-1]
    eye, linear = torch.eye(width, dtype=x.dtype), nn.Linear(width, width)
    plan = form.Plan((linear,), (width,), (1.0,), drop, seed)
    return form.low(torch.ones_like(x), plan, [eye, eye])


def test_dropout_is_one_mask_of_both_passes(form):
    torch.manual_seed(4)
    x = drawn(torch.Generator().manual_seed(4), 50, 40).requires_grad_()
    members = group(40, (2, 3), drop=0.4)
    state = torch.get_rng_state()
    ours = results(form, x, members)
    torch.set_rng_state(state)
    mask = mask_of(form, x, 0.4, form.seed_on(x.device, 0))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    sigma = (0.6 * 0.4 / mask.numel()) ** 0.5
    assert abs(float(mask.mean()) - 0.6) < 4 * sigma
    dropped = x * mask / 0.6
    plain = [m.linear(x) + m.scale * (dropped @ m.A.T) @ m.B.T for m in members]
    wanted = [*(t for m in members for t in (m.A, m.B)), x]
    gs = [torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape) for y in plain]
    alike(ours, [*plain, *torch.autograd.grad(plain, wanted, gs)], 1e-12)
    again = form.adapted_linears(x, members)
    assert not torch.equal(again[0], ours[0])


def test_gradcheck(form):
    """One seed for every call, as one step has."""
    members = group(5, (2, 1, 0), drop=0.3)
    found, thin = plan(members, lambda site: torch.tensor([12345]))
    x = drawn(torch.Generator().manual_seed(5), 4, 5).requires_grad_()

    def run(x, *thin):
        return Group.apply(x, found, Products(form.forward, form.backward), *thin)

    assert torch.autograd.gradcheck(run, (x, *thin), fast_mode=True)


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("ranks", [(2, 2, 2), (0, 3), (0, 0)])
def test_it_keeps_the_input_and_a_thin_product(form, ranks, drop):
    x = drawn(torch.Generator().manual_seed(6), 32, 11).requires_grad_()
    members = group(11, ranks, drop=drop)
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        form.adapted_linears(x, members)
    thin = sum(t.numel() for m in members for t in (m.A, m.B) if t is not None)
    assert sum(sizes) == (x.numel() + 32 * sum(ranks) + thin if any(ranks) else 0)


def test_the_same_step_gives_the_same_bits(form):
    x = drawn(torch.Generator().manual_seed(7), 64, 21).float().requires_grad_()
    members = group(21, (8, 8, 8), torch.float32)
    for a, b in zip(*(results(form, x, members) for _ in range(2)), strict=True):
        assert torch.equal(a, b)
