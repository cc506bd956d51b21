"""The fused group is its readable twin: values and every gradient, in float64 and below."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.lora import fused, reference
from minift.kernels.lora.fused import Group, Products, kept, plan
from minift.kernels.lora.reference import Adapted
from minift.kernels.quantized.linear import QuantizedLinear

OUT = (9, 3, 5)


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
    # Of a linear without a change nothing learns, unless x does.
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
@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 1), (1, 7), (3, 7), (2, 128)])
def test_values_and_all_gradients(B, T, ranks):
    x = drawn(torch.Generator().manual_seed(T), B, T, 11).requires_grad_()
    members = group(11, ranks)
    alike(results(fused, x, members), results(reference, x, members), 1e-12)


@pytest.mark.parametrize("base", [None, "int8", "nf4"])
@pytest.mark.parametrize("biased", [False, True])
def test_without_dx_without_biases_and_on_few_bits(base, biased):
    members = group(64, (8, 0, 2), biased=biased, base=base)
    for learns in (False, True):
        x = drawn(torch.Generator().manual_seed(1), 2, 5, 64).requires_grad_(learns)
        alike(results(fused, x, members), results(reference, x, members), 1e-12)


def test_inputs_that_lie_apart_and_adapters_that_do_not_learn():
    members = group(11, (2, 3, 4))
    generator = torch.Generator().manual_seed(2)
    across = drawn(generator, 11, 4, 6).permute(2, 1, 0).requires_grad_()
    alike(results(fused, across, members), results(reference, across, members), 1e-12)
    for member in members:
        member.A.requires_grad_(False), member.B.requires_grad_(False)
    alike(results(fused, across, members), results(reference, across, members), 1e-12)


def test_no_rows_at_all():
    x = torch.zeros(0, 11, dtype=torch.float64, requires_grad=True)
    ys = fused.adapted_linears(x, group(11, (2, 2)))
    assert [y.shape for y in ys] == [(0, 9), (0, 3)]


def test_float32_is_within_its_rounding():
    x = drawn(torch.Generator().manual_seed(3), 3, 64, 48).requires_grad_()
    exact = results(reference, x, group(48, (8, 8, 8)))
    single = x.detach().float().requires_grad_()
    alike([t.double() for t in results(fused, single, group(48, (8, 8, 8), torch.float32))],
          exact, 1e-5)  # fmt: skip


def test_bf16_is_about_as_close_to_the_truth_as_its_twin():
    """The twin multiplies A and B in float32; the fused form rounds them, as it does all else."""
    x = drawn(torch.Generator().manual_seed(3), 3, 64, 48).bfloat16().requires_grad_()
    members = group(48, (8, 8, 8), torch.bfloat16)
    wide = group(48, (8, 8, 8))
    for member, twin in zip(wide, members, strict=True):
        member.linear.load_state_dict(twin.linear.state_dict())
        member.A.data.copy_(twin.A.data), member.B.data.copy_(twin.B.data)
    exact = results(reference, x.detach().double().requires_grad_(), wide)
    for a, b, e in zip(results(fused, x, members), results(reference, x, members), exact,
                       strict=True):  # fmt: skip
        assert a.dtype == b.dtype
        ours, twins = ((t.double() - e).norm() / e.norm() for t in (a, b))
        assert ours < max(1.5 * twins, 2**-7)


def test_dropout_is_one_mask_of_both_passes():
    torch.manual_seed(4)
    x = drawn(torch.Generator().manual_seed(4), 50, 11).requires_grad_()
    members = group(11, (2, 3), drop=0.4)
    state = torch.get_rng_state()
    ours = results(fused, x, members)
    torch.set_rng_state(state)
    found, _ = plan(members)  # draws the same seed
    mask = kept(x, 0.4, found.seed)
    assert 0.5 < float(mask.mean()) < 0.7
    dropped = x * mask / 0.6
    plain = [m.linear(x) + m.scale * (dropped @ m.A.T) @ m.B.T for m in members]
    wanted = [*(t for m in members for t in (m.A, m.B)), x]
    gs = [torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape) for y in plain]
    alike(ours, [*plain, *torch.autograd.grad(plain, wanted, gs)], 1e-12)
    again = fused.adapted_linears(x, members)
    assert not torch.equal(again[0], ours[0])


def test_gradcheck():
    members = group(5, (2, 1, 0), drop=0.3)
    found, thin = plan(members)
    x = drawn(torch.Generator().manual_seed(5), 4, 5).requires_grad_()
    products = Products(fused.forward, fused.backward)

    def run(x, *thin):
        return Group.apply(x, found, products, *thin)

    assert torch.autograd.gradcheck(run, (x, *thin))


@pytest.mark.parametrize("ranks", [(2, 2, 2), (0, 3), (0, 0)])
def test_it_keeps_the_input_and_a_thin_product(ranks):
    x = drawn(torch.Generator().manual_seed(6), 32, 11).requires_grad_()
    members = group(11, ranks)
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused.adapted_linears(x, members)
    thin = sum(t.numel() for m in members for t in (m.A, m.B) if t is not None)
    assert sum(sizes) == (x.numel() + 32 * sum(ranks) + thin if any(ranks) else 0)
