"""What torch's kernel is asked, answered by a stand-in that does what its documentation says; the
kernel itself runs on a GPU alone. Shapes by the kernel's own declaration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.attention.varlen as theirs

from minift.kernels.attention import dispatch, varlen
from minift.kernels.attention.packed import PackedSequences

T, ENDS = 9, (0, 4, 5, 9, 9, 9)


def heads(dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, T, n, 8, generator=generator).to(device, dtype) for n in (4, 2, 2)]
    return [x.transpose(1, 2).requires_grad_() for x in made]


def packed(window=None, device="cpu"):
    sizes = torch.tensor(ENDS).diff()
    segments = torch.arange(len(sizes)).repeat_interleave(sizes)[None]
    cu_seqlens = torch.tensor(ENDS, dtype=torch.int32)
    return PackedSequences(segments.to(device), cu_seqlens.to(device), 4, window)


def documented(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size,
               enable_gqa):  # fmt: skip
    """Query i of a sequence sees the keys from i - left to i + right, -1: all on that side."""
    out = torch.zeros_like(query)
    left, right = window_size
    assert max_q == max_k == 4
    assert right == 0
    assert (query.shape[1] == key.shape[1]) or enable_gqa
    for a, b in zip(cu_seq_q.tolist(), cu_seq_k.tolist()[1:], strict=False):
        for i in range(a, b):
            first = a if left == -1 else max(a, i - left)
            for h in range(query.shape[1]):
                group = h * key.shape[1] // query.shape[1]
                scores = key[first : i + 1, group] @ query[i, h] * (scale or 8**-0.5)
                out[i, h] = scores.softmax(0) @ value[first : i + 1, group]
    return out


def before_2_12(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None,
                window_size=(-1, -1)):  # fmt: skip
    """Grouped heads unasked."""
    return documented(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale,
                      window_size=window_size, enable_gqa=True)  # fmt: skip


@pytest.fixture
def _asked_anew():
    varlen.parameters.cache_clear()
    yield
    varlen.parameters.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize("kernel", [documented, before_2_12])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_what_is_asked_is_the_mask(window, scale, kernel, monkeypatch):
    monkeypatch.setattr(theirs, "varlen_attn", kernel)
    assert varlen.installed()
    q, k, v = heads()
    y = dispatch.attend(q, k, v, None, True, scale, None, packed(window))
    at, segments = torch.arange(T), packed().segments[0]
    mask = (at <= at[:, None]) & (segments == segments[:, None])
    if window is not None:
        mask &= at[:, None] - at < window
    expected = dispatch.attend(q, k, v, mask[None, None], False, scale)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("segments", "cu_seqlens", "max_seqlen"), [
    ([5], [0, 1], 1), ([0, 0, 0, 0], [0, 4], 4), ([3, 3, 1, 0, 0, 0, 3], [0, 2, 3, 6, 7], 3),
])  # fmt: skip
def test_an_ordinary_row_is_asked_where_its_sequences_end(segments, cu_seqlens, max_seqlen):
    found = PackedSequences.of(torch.tensor([segments]), None)
    assert found.cu_seqlens.tolist() == cu_seqlens
    assert found.cu_seqlens.dtype == torch.int32
    assert found.max_seqlen == max_seqlen
    assert found.segments.tolist() == [segments]


def test_the_kernel_takes_these_shapes_both_ways():
    assert varlen.installed()
    q, k, v = heads(torch.bfloat16, "meta")
    y = varlen.attention(q, k, v, packed(device="meta"))
    assert y.shape == q.shape
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.sum(), (q, k, v))
    assert [g.shape for g in grads] == [x.shape for x in (q, k, v)]


@pytest.mark.parametrize(("dtype", "device", "width", "capability", "expected"), [
    (torch.bfloat16, "cuda", 64, (9, 0), True), (torch.float16, "cuda", 256, (8, 0), True),
    (torch.float32, "cuda", 64, (9, 0), False), (torch.bfloat16, "cpu", 64, (9, 0), False),
    (torch.bfloat16, "cuda", 60, (9, 0), False), (torch.bfloat16, "cuda", 264, (9, 0), False),
    (torch.bfloat16, "cuda", 64, (7, 5), False),
])  # fmt: skip
def test_where_it_suits(dtype, device, width, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert varlen.suits(dtype, torch.device(device), width) == expected
    monkeypatch.setattr(varlen, "installed", lambda: False)
    assert not varlen.suits(dtype, torch.device(device), width)
