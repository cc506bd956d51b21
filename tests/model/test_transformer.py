"""The transformer against transformers' numbers (tests/golden/make_llama.py), and properties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.generation.cache import KVCache
from minift.kernels.attention import varlen
from minift.kernels.attention.dispatch import attend
from minift.kernels.attention.packed import PackedSequences
from minift.kernels.choice import using
from minift.model import attention_mask
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("llama_gqa", "llama_biased")
CASES = ("plain", "one", "right", "left", "long", "far")
TINY = ModelConfig("llama", 50, 24, 2, 4, 2, 6, 20, 64)


def golden(name):
    return np.load(GOLDEN / f"{name}.npz")


def tiny(dtype=torch.float64, **fields):
    torch.manual_seed(1)
    model = Transformer(replace(TINY, **fields)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=dtype) * 0.3)
    return model.eval()


def inputs(data, case):
    return (torch.from_numpy(data[f"{case}.{key}"]) for key in ("tokens", "mask", "positions"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "key", "close"), [
    (torch.float32, "logits", 1e-4), (torch.float64, "logits64", 1e-10),
])  # fmt: skip
def test_logits_equal_transformers(name, case, dtype, key, close):
    data = golden(name)
    tokens, mask, positions = inputs(data, case)
    model = load_model(GOLDEN / name, dtype=dtype)
    given = {"positions": positions} if case == "far" else {}
    with torch.no_grad():
        logits = model(tokens, mask=mask.bool(), **given)
    expected = torch.from_numpy(data[f"{case}.{key}"])
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=close)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_of_every_layer_equal_transformers(name, case):
    data = golden(name)
    tokens, mask, positions = inputs(data, case)
    model, states = load_model(GOLDEN / name), []
    model.embed.register_forward_hook(lambda m, i, o: states.append(o))
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, o: states.append(o))
    model.norm.register_forward_hook(lambda m, i, o: states.append(o))
    with torch.no_grad():
        model(tokens, mask=mask.bool(), positions=positions)
    expected = torch.from_numpy(data[f"{case}.hidden"])
    assert len(states) == len(expected)
    for mine, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(mine[mask.bool()], theirs[mask.bool()], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["plain", "left", "right"])
def test_loss_and_gradients_equal_transformers(name, case):
    data = golden(name)
    tokens, mask, _ = inputs(data, case)
    learn = torch.from_numpy(data[f"{case}.learn"]).bool()
    model = load_model(GOLDEN / name, dtype=torch.float64)
    logits = model(tokens, mask=mask.bool())[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits[learn[:, 1:]], tokens[:, 1:][learn[:, 1:]], reduction="sum"
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(data[f"{case}.loss64"]), rel=1e-12)
    for theirs, parameter in {
        "model.embed_tokens.weight": model.embed.weight,
        "model.layers.0.self_attn.q_proj.weight": model.blocks[0].attn.qkv.q.weight,
        "model.layers.1.input_layernorm.weight": model.blocks[1].attn.norm.weight,
    }.items():
        expected = torch.from_numpy(data[f"{case}.grad64.{theirs}"])
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone(side):
    model = tiny()
    rows = [torch.randint(50, (n,)) for n in (7, 1, 4)]
    tokens, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(7 - len(row), 7) if side == "left" else slice(0, len(row))
        tokens[i, at], mask[i, at] = row, True
    logits = model(tokens, mask=mask)
    for i, row in enumerate(rows):
        torch.testing.assert_close(logits[i][mask[i]], model(row[None])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [(5, 1, 1, 1), (3, 5), (1, 1, 6)])
@pytest.mark.parametrize("pad", [0, 2])
def test_cached_pieces_equal_one_pass(pieces, pad):
    model = tiny()
    tokens = torch.randint(50, (2, 8 + pad))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, :pad] = False
    whole = model(tokens, mask=mask)
    cache, parts, at = KVCache(model.config, 2, 16, dtype=torch.float64), [], 0
    for k, size in enumerate((pieces[0] + pad, *pieces[1:])):
        given = {"mask": mask[:, at : at + size]} if k == 0 else {}
        parts.append(model(tokens[:, at : at + size], cache=cache, **given))
        at += size
    got = torch.cat(parts, 1)
    torch.testing.assert_close(got[mask], whole[mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("fields", "windows"), [
    ({}, {None}), ({"local": (True, False), "window": 2}, {2, None}),
    ({"attention_softcap": 3.0}, set()), ({"causal": False}, set()),
])  # fmt: skip
def test_packed_rows_go_to_the_varlen_kernel_where_there_is_one(fields, windows, monkeypatch):
    """Which no CPU has: a stand-in cuts the row at `cu_seqlens`."""
    asked = set()

    def attention(q, k, v, packed, scale):
        asked.add(packed.window)
        parts = []
        for piece in zip(
            *(x.split(packed.cu_seqlens.diff().tolist(), 2) for x in (q, k, v)), strict=True
        ):
            at = torch.arange(piece[0].shape[2])
            far = at[:, None] - at
            mask = (far >= 0) & (far < (packed.window or 99))
            parts.append(attend(*piece, mask[None, None], False, scale))
        return torch.cat(parts, 2)

    model, tokens = tiny(**fields), torch.randint(50, (1, 9))
    segments = packed_sequences().segments
    bucketed = model(tokens, segments=segments)
    monkeypatch.setattr(attention_mask, "suits", lambda dtype, device, width: True)
    monkeypatch.setattr(varlen, "attention", attention)
    told = model(tokens, segments=segments)
    assert asked == windows
    torch.testing.assert_close(told, bucketed, rtol=0, atol=1e-12)
    padded = torch.arange(9)[None] > 0
    model(tokens, segments=segments, mask=padded)  # which the kernel cannot be told
    with using("reference"):
        model(tokens, segments=segments)
    assert asked == windows


def test_segments_equal_separate_rows():
    model = tiny()
    parts = [torch.randint(50, (n,)) for n in (3, 1, 5)]
    tokens = torch.cat(parts)[None]
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor([3, 1, 5]))[None]
    packed = model(tokens, segments=segments)[0]
    alone = torch.cat([model(part[None])[0] for part in parts])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pad", [0, 2])
def test_past_equals_the_tokens_that_made_it(pad):
    model = tiny()
    first, rest = torch.randint(50, (1, 3)), torch.randint(50, (2, 4 + pad))
    mask = torch.ones_like(rest, dtype=torch.bool)
    mask[1, :pad] = False
    cache = KVCache(model.config, 1, 3, dtype=torch.float64)
    model(first, cache=cache)
    past = [(cache.k[layer], cache.v[layer]) for layer in range(model.config.layers)]
    got = model(rest, mask=mask, past=past)
    for i in range(2):
        row = torch.cat((first[0], rest[i][mask[i]]))
        torch.testing.assert_close(got[i][mask[i]], model(row[None])[0, 3:], rtol=0, atol=1e-12)


def test_no_gradient_is_nan_where_a_row_is_padded():
    model = tiny(torch.float32)
    mask = torch.tensor([[False] * 4 + [True] * 2, [False] * 6])
    model(torch.randint(50, (2, 6)), mask=mask)[0, -1].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_checkpointing_changes_nothing():
    model = tiny()
    tokens = torch.randint(50, (2, 5))
    grads = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(tokens).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_embeds_stand_for_tokens():
    model = tiny()
    tokens = torch.randint(50, (2, 5))
    assert torch.equal(model(tokens), model(embeds=model.embed(tokens)))


def test_hidden_only_stops_before_the_head():
    model = tiny()
    tokens = torch.randint(50, (2, 5))
    assert torch.equal(model.head(model(tokens, hidden_only=True)), model(tokens))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_logprobs_are_those_of_the_logits_at_a_temperature(cap, learned):
    model = tiny(logit_softcap=cap).requires_grad_(learned)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    hidden = model(tokens, hidden_only=True)[:, :-1].flatten(0, 1)  # (N, D)
    logp, entropy = model.logprobs(hidden, tokens[:, 1:].flatten(), 0.7)
    one = torch.distributions.Categorical(logits=model(tokens)[:, :-1].flatten(0, 1) / 0.7)
    torch.testing.assert_close(logp, one.log_prob(tokens[:, 1:].flatten()), rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, one.entropy(), rtol=0, atol=1e-12)
    assert logp.requires_grad == learned


@pytest.mark.parametrize("norm_at", ["pre", "post", "sandwich", "parallel"])
@pytest.mark.parametrize("fields", [
    {}, {"window": 3, "local": (False, True)}, {"qk_norm": True}, {"positions": "learned"},
    {"causal": False}, {"attention_softcap": 3.0}, {"norm": "layer", "heads": 4, "kv_heads": 1},
], ids=str)  # fmt: skip
def test_selected_positions_of_every_kind_of_block(fields, norm_at, monkeypatch):
    """All that is trained, against the whole pass; recomputed in the backward pass, too."""
    model = tiny(norm_at=norm_at, **fields)
    tokens = torch.arange(3 * 8).view(3, 8) * 7 % 50
    selected = torch.zeros(3, 8, dtype=torch.bool)
    selected[0, 1], selected[0, 7], selected[2, 3:6] = True, True, True
    past = [(torch.randn(1, model.config.kv_heads, 2, 6).double(),) * 2 for _ in range(2)]
    weights = torch.sin(torch.arange(5.0 * 50)).view(5, 50).double()
    for given in ({}, {"past": past}):
        exact = model(tokens, **given)[selected]
        expected = torch.autograd.grad((exact * weights).sum(), list(model.parameters()))
        for model.checkpointing in (False, True):
            rows = model(tokens, selected=selected, **given)
            torch.testing.assert_close(rows, exact, rtol=0, atol=1e-12)
            grads = torch.autograd.grad((rows * weights).sum(), list(model.parameters()))
            for one, other in zip(grads, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        model.checkpointing = False


@pytest.mark.parametrize("pad", [0, 2])
def test_selected_positions_with_a_cache(pad):
    model = tiny()
    tokens = torch.arange(2 * 6).view(2, 6) * 7 % 50
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, :pad] = False
    last = torch.zeros(2, 6, dtype=torch.bool)
    last[:, -1] = True
    more = torch.tensor([[3], [4]])
    with torch.no_grad():
        caches = [KVCache(model.config, 2, 8, dtype=torch.float64) for _ in range(2)]
        whole = model(tokens, mask=mask, cache=caches[0])[:, -1]
        short = model(tokens, mask=mask, cache=caches[1], selected=last)
        torch.testing.assert_close(short, whole, rtol=0, atol=1e-12)
        then = [model(more, cache=cache) for cache in caches]
        torch.testing.assert_close(then[0], then[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1, 24])
def test_selected_may_be_nothing_or_everything(count):
    model = tiny()
    tokens = torch.arange(3 * 8).view(3, 8) * 7 % 50
    selected = (torch.arange(24) < count).view(3, 8)
    rows = model(tokens, selected=selected, hidden_only=True)
    torch.testing.assert_close(rows, model(tokens, hidden_only=True)[selected], rtol=0, atol=1e-12)
    loss = model.nll(rows, tokens[selected])
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_selected_that_cannot_be_is_refused():
    model, tokens = tiny(), torch.zeros(2, 3, dtype=torch.long)
    for selected in (torch.ones(2, 4).bool(), torch.ones(2, 3)):
        with pytest.raises(ConfigError, match=r"selected is .*, allowed bool \(2, 3\)"):
            model(tokens, selected=selected)
    labelled = tiny(head="label", labels=("a", "b"))
    with pytest.raises(ConfigError, match="a label head selects its own position"):
        labelled(tokens, selected=torch.ones(2, 3).bool())
    assert labelled(tokens, selected=torch.ones(2, 3).bool(), hidden_only=True).shape == (6, 24)


def test_parameter_names_are_frozen():
    names = {name for name, _ in tiny(qkv_bias=True).named_parameters() if "blocks.1" not in name}
    assert names == {
        "embed.weight", "norm.weight", "head.weight", "blocks.0.attn.norm.weight",
        "blocks.0.attn.qkv.q.weight", "blocks.0.attn.qkv.q.bias", "blocks.0.attn.qkv.k.weight",
        "blocks.0.attn.qkv.k.bias", "blocks.0.attn.qkv.v.weight", "blocks.0.attn.qkv.v.bias",
        "blocks.0.attn.out.o.weight", "blocks.0.mlp.norm.weight", "blocks.0.mlp.hidden.gate.weight",
        "blocks.0.mlp.hidden.up.weight", "blocks.0.mlp.out.down.weight",
    }  # fmt: skip


def test_a_tied_head_is_the_embedding():
    model = tiny(tied=True)
    assert model.head.weight is model.embed.weight


def test_wrong_calls_are_refused():
    model, tokens = tiny(), torch.zeros(1, 2, dtype=torch.long)
    for call in (
        {},
        {"tokens": tokens, "embeds": torch.zeros(1, 2, 24)},
        {"tokens": tokens, "token_types": tokens},
        {"tokens": tokens, "segments": tokens, "cache": KVCache(model.config, 1, 4)},
    ):
        with pytest.raises(ConfigError):
            model(**call)


def packed_sequences(sizes=(3, 1, 5)):
    """Three sequences in a row, and two without a position."""
    cu_seqlens = torch.tensor([0, *sizes, 0, 0]).cumsum(0).int()
    segments = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[None]
    return PackedSequences(segments, cu_seqlens, max(sizes))


@pytest.mark.parametrize("fields", [
    {}, {"positions": "learned"}, {"local": (True, False), "window": 2}, {"attention_softcap": 3.0},
    {"causal": False}, {"embed_scale": 3.0, "norm_at": "sandwich"},
])  # fmt: skip
def test_sequences_of_a_fixed_row_equal_separate_rows(fields):
    model = tiny(**fields)
    tokens = torch.randint(50, (1, 9))
    y = model(tokens, segments=packed_sequences())[0]
    for begin, end in ((0, 3), (3, 4), (4, 9)):
        torch.testing.assert_close(y[begin:end], model(tokens[:, begin:end])[0])


def test_packed_sequences_do_not_go_with_a_mask_or_beyond_the_context():
    model, tokens = tiny(positions="learned"), torch.zeros(1, 9, dtype=torch.long)
    with pytest.raises(ConfigError, match="PackedSequences and a mask do not go together"):
        model(tokens, segments=packed_sequences(), mask=torch.ones(1, 9))
    with pytest.raises(ConfigError, match="position 64 is beyond the context, 64"):
        model(tokens, segments=replace(packed_sequences(), max_seqlen=65))


@pytest.mark.parametrize("norm_at", ["pre", "post", "sandwich", "parallel"])
@pytest.mark.parametrize("at", [[4, 1, 13], list(range(17, -1, -1))])
def test_positions_selected_by_index_come_in_that_order(norm_at, at):
    """Few of them, gathered before the last block, and all."""
    model = tiny(norm_at=norm_at, final_norm=norm_at != "post")
    tokens, at = torch.randint(50, (2, 9)), torch.tensor(at)
    y = model(tokens, selected=at)
    torch.testing.assert_close(y, model(tokens).flatten(0, 1)[at])
    weight = model.blocks[0].mlp.hidden.up.weight
    found, expected = (
        torch.autograd.grad(x.square().sum(), weight)[0]
        for x in (y, model(tokens).flatten(0, 1)[at])
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("selected", [torch.ones(9).bool(), torch.ones(2, 9).long(), torch.ones(3)])
def test_positions_selected_in_any_other_way_are_refused(selected):
    with pytest.raises(ConfigError, match=r"allowed bool \(2, 9\) or int64 \(N,\)"):
        tiny()(torch.zeros(2, 9, dtype=torch.long), selected=selected)
