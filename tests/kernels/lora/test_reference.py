"""LoRA's product against explicit matrices, and its gradients against the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.lora.reference import Adapted, adapted_linear, low_rank

IN, OUT, R = 7, 5, 3


def lora_linear(x, W, b, A, B, scale, drop):
    linear = nn.utils.skip_init(nn.Linear, *W.T.shape, bias=b is not None)  # no random numbers
    linear.weight = nn.Parameter(W, requires_grad=False)
    if b is not None:
        linear.bias = nn.Parameter(b, requires_grad=False)
    return adapted_linear(x, Adapted(linear, A, B, scale, drop))


def made(*shape, dtype=torch.float64, wide=torch.float64):
    """x, W, b, A, B and g, from one seed."""
    generator = torch.Generator().manual_seed(8)

    def randn(*size, dtype):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    x, W, b = randn(*shape, IN, dtype=dtype), randn(OUT, IN, dtype=dtype), randn(OUT, dtype=dtype)
    A, B = randn(R, IN, dtype=wide), randn(OUT, R, dtype=wide)
    return x, W, b, A, B, randn(*shape, OUT, dtype=dtype)


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 1), (2, 6), (2, 3, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_product_equals_the_merged_matrix(shape, biased):
    x, W, b, A, B, _ = made(*shape)
    bias = b if biased else None
    y = lora_linear(x, W, bias, A, B, 1.75, 0.0)
    merged = W + 1.75 * (B @ A)
    expected = torch.einsum("...i,oi->...o", x, merged) + (b if biased else 0)
    assert y.shape == (*shape, OUT)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(1,), (9,), (2, 1), (2, 6)])
def test_gradients_are_those_of_the_formulas(shape):
    x, W, b, A, B, g = made(*shape)
    x, A, B = x.requires_grad_(), A.requires_grad_(), B.requires_grad_()
    s = 0.5
    y = lora_linear(x, W, b, A, B, s, 0.0)
    dx, dA, dB = torch.autograd.grad(y, (x, A, B), g)
    x2, g2 = x.detach().reshape(-1, IN), g.reshape(-1, OUT)
    u = s * g2 @ B
    torch.testing.assert_close(dB, s * g2.T @ (x2 @ A.T))
    torch.testing.assert_close(dA, u.T @ x2)
    torch.testing.assert_close(dx.reshape(-1, IN), g2 @ W + u @ A)


def test_a_zero_change_is_the_plain_linear_bit_for_bit():
    x, W, b, A, B, _ = made(3, dtype=torch.float32, wide=torch.float32)
    plain = nn.functional.linear(x, W, b)
    assert torch.equal(lora_linear(x, W, b, A, torch.zeros_like(B), 2.0, 0.0), plain)


def test_a_narrow_base_keeps_its_dtype_and_the_change_its_precision():
    x, W, _, A, B, g = made(2, 6, dtype=torch.bfloat16, wide=torch.float32)
    A, B = A.requires_grad_(), B.requires_grad_()
    y = lora_linear(x, W, None, A, B, 2.0, 0.0)
    assert y.dtype == torch.bfloat16
    exact = x.double() @ W.double().T + 2 * (x.double() @ A.double().T) @ B.double().T
    torch.testing.assert_close(y.double(), exact, rtol=2**-6, atol=2**-3)
    # With no base, what is left is the change: exact but for one rounding to eight bits.
    alone = lora_linear(x, torch.zeros_like(W), None, A, B, 2.0, 0.0).double()
    change = 2 * (x.double() @ A.double().T) @ B.double().T
    torch.testing.assert_close(alone, change, rtol=2**-8, atol=1e-5)
    y.backward(g)
    assert A.grad.dtype == B.grad.dtype == torch.float32
    g2, x2 = g.double().reshape(-1, OUT), x.double().reshape(-1, IN)
    expected = 2 * g2.T @ (x2 @ A.double().T)
    torch.testing.assert_close(B.grad.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(A.grad.double(), 2 * (g2 @ B.double()).T @ x2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", ["columns", "transposed", "expanded"])
def test_strided_input_equals_its_copy(cut):
    x = made(6, 2)[0]
    x = {
        "columns": torch.stack((x, -x), dim=-1)[..., 0],
        "transposed": x.transpose(0, 1),
        "expanded": x[:, :1].expand(-1, 3, -1),
    }[cut]
    assert not x.is_contiguous()
    _, W, b, A, B, _ = made(1)
    strided = lora_linear(x, W, b, A, B, 0.5, 0.0)
    torch.testing.assert_close(strided, lora_linear(x.contiguous(), W, b, A, B, 0.5, 0.0))


def test_dropout_takes_inputs_of_the_change_only_and_scales_the_rest():
    n, p = 4000, 0.25
    x = torch.ones(n, 2, dtype=torch.float64)
    W = torch.tensor([[10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    one = torch.eye(2, dtype=torch.float64)
    torch.manual_seed(0)
    change = lora_linear(x, W, None, one, one, 3.0, p) - 10  # the base sees every input
    dropped = change == 0
    torch.testing.assert_close(change[~dropped], torch.full_like(change[~dropped], 3 / (1 - p)))
    sigma = (p * (1 - p) / (2 * n)) ** 0.5
    assert abs(float(dropped.double().mean()) - p) < 4 * sigma
    assert abs(float(change.mean()) - 3) < 4 * 3 * sigma / (1 - p)  # the expectation is unchanged


def test_dropout_is_seen_by_the_gradients_alike():
    x, W, _, A, B, g = made(9)
    x, A, B = x.requires_grad_(), A.requires_grad_(), B.requires_grad_()
    torch.manual_seed(5)
    y = lora_linear(x, W, None, A, B, 2.0, 0.5)
    torch.manual_seed(5)
    D = nn.functional.dropout(torch.ones_like(x), 0.5).detach()  # 0 or 2
    assert set(D.unique().tolist()) == {0.0, 2.0}
    dx, dA, dB = torch.autograd.grad(y, (x, A, B), g)
    u = 2 * g @ B
    torch.testing.assert_close(dB, 2 * g.T @ ((D * x) @ A.T))
    torch.testing.assert_close(dA, u.T @ (D * x))
    torch.testing.assert_close(dx, g @ W + D * (u @ A))


def test_the_change_alone_is_what_the_whole_adds():
    x, W, b, A, B, _ = made(5)
    whole = lora_linear(x, W, b, A, B, 0.5, 0.0)
    torch.testing.assert_close(low_rank(x, A, B, 0.5, 0.0), 0.5 * x @ A.T @ B.T)
    torch.testing.assert_close(whole - nn.functional.linear(x, W, b), low_rank(x, A, B, 0.5, 0.0))
    assert low_rank(x.bfloat16(), A, B, 0.5, 0.0).dtype == torch.bfloat16
