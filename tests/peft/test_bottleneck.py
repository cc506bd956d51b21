"""Bottleneck adapters: their equations written out for every place of the norms, and the rest."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.generation.cache import KVCache
from minift.peft.adapters import detach, disabled, rows, trainable, use
from minift.peft.bottleneck import DESIGNS, SUBLAYERS, Bottleneck, BottleneckLayer
from minift.peft.merge import merge
from minift.peft.methods import attach, count
from minift.peft.slots import changes

GOLDEN = Path(__file__).parents[1] / "golden"
BASES = {  # where the norms of a block are
    "pre": "llama_gqa",
    "pre, biased": "families/gpt2_odd",
    "post": "families/bert",
    "sandwich": "families/gemma2",
    "parallel": "families/gpt_neox",
}
CONFIGS = [
    Bottleneck("houlsby", reduction=5),
    Bottleneck("pfeiffer", reduction=4),
    Bottleneck("parallel"),
    Bottleneck("pfeiffer", 3, "gelu_tanh", -0.5, sublayers=("attn", "mlp")),
    Bottleneck("parallel", 2.5, "tanh", sublayers=("attn",)),
]
ACTS = {
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
TOKENS = (torch.arange(27).view(3, 9) * 17 + 5) % 46 + 1
MASK = torch.arange(9) < torch.tensor([[9], [5], [1]])

every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


def base_model(base, dtype=torch.float64):
    return load_model(GOLDEN / base, dtype=dtype).eval()


def perturb(model, seed=1, name=None):
    """As after training: every parameter far from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, _, change in changes(model, name):
            for parameter in change.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * noise)
    return model


def adapted(base, config, dtype=torch.float64):
    return perturb(attach(base_model(base, dtype), config))


def by_hand(model, config, kind, x, shared):
    """The blocks of one forward pass, every sum written out."""
    plan = config.plan
    there = {path: change for path, _, change in changes(model)}

    def adapter(path, z):
        if path not in there:
            return 0
        c = there[path]
        h = z @ c.down.T + c.down_bias
        return plan.scale * (ACTS[plan.act](h) @ c.up.T + c.up_bias)

    for i, block in enumerate(model.blocks):
        start, total = x, x
        for name in SUBLAYERS:
            path, sub = f"blocks.{i}.{name}", getattr(block, name)
            if kind == "post":
                y = sub.inner(x, shared)
                seen = {"houlsby": y, "pfeiffer": sub.norm(x + y), "parallel": x}[config.design]
                x = sub.norm(x + (y + adapter(path, seen)))
                continue
            x = start if kind == "parallel" else x
            y = sub.inner(sub.norm(x), shared)
            if kind == "sandwich":
                y = sub.after(y)
            seen = {"houlsby": y, "pfeiffer": x + y, "parallel": x}[config.design]
            added = y + adapter(path, seen)
            total = total + added
            x = x + added
        x = total if kind == "parallel" else x
    return x


@every_config
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("padding", ["right", "left"])
@torch.no_grad()
def test_the_equations(kind, config, padding):
    model, seen = adapted(BASES[kind], config), {}
    mask = MASK if padding == "right" else MASK.flip(1)
    model.blocks[0].register_forward_pre_hook(lambda m, given: seen.update(first=given))
    model.blocks[-1].register_forward_hook(lambda m, given, out: seen.update(last=out))
    plain = base_model(BASES[kind])(TOKENS, mask=mask)
    out = model(TOKENS, mask=mask)
    x, shared = seen["first"]
    expected = by_hand(model, config, kind.partition(",")[0], x, shared)
    torch.testing.assert_close(seen["last"], expected, rtol=1e-12, atol=1e-12)
    assert (out - plain).abs().max() > 0.01


@every_config
@every_base
def test_wanted_rows_are_those_of_the_whole_pass(base, config):
    model = adapted(base, config)
    wanted = MASK & (torch.arange(9) % 3 == 1)
    whole = model(TOKENS, mask=MASK, hidden_only=True)[wanted]
    short = model(TOKENS, mask=MASK, hidden_only=True, selected=wanted)
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-12 * float(whole.detach().abs().max()))
    exact, found = (
        torch.autograd.grad(y.sin().sum(), list(trainable(model).values())) for y in (whole, short)
    )
    for one, other in zip(exact, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@every_config
@every_base
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_step_zero_is_exactly_the_base(base, config, dtype):
    model = base_model(base, dtype)
    before = model(TOKENS, mask=MASK)
    assert torch.equal(attach(model, config)(TOKENS, mask=MASK), before)


@every_base
@torch.no_grad()
def test_disabled_is_the_base_bit_for_bit(base):
    model = base_model(base, torch.float32)
    before = model(TOKENS, mask=MASK)
    perturb(attach(model, Bottleneck("houlsby")))
    assert not torch.equal(model(TOKENS, mask=MASK), before)
    with disabled(model):
        assert torch.equal(model(TOKENS, mask=MASK), before)
    assert torch.equal(use(model, None)(TOKENS, mask=MASK), before)
    assert torch.equal(detach(model)(TOKENS, mask=MASK), before)


@every_config
@every_base
def test_the_count_is_what_is_trained(base, config):
    model = attach(base_model(base), config)
    assert sum(p.numel() for p in trainable(model).values()) == count(model, config)
    D, layers = model.config.dim, model.config.layers
    R = max(1, int(D / config.plan.reduction))
    assert count(model, config) == layers * len(config.plan.sublayers) * (2 * D * R + R + D)
    assert all(".change." in name for name in trainable(model))


@pytest.mark.parametrize(("dtype", "own"), [("bf16", "float32"), ("float64", "float64")])
def test_adapters_are_precise_on_any_base(dtype, own):
    dtype = {"bf16": torch.bfloat16, "float64": torch.float64}[dtype]
    model = adapted("llama_gqa", Bottleneck("houlsby"), dtype)
    assert {p.dtype for p in trainable(model).values()} == {getattr(torch, own)}
    out = model(TOKENS, mask=MASK)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in trainable(model).values())


def test_a_copy_is_a_model_of_its_own():
    model = adapted("families/bert", Bottleneck("pfeiffer"))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(TOKENS, mask=MASK)
        assert torch.equal(twin(TOKENS, mask=MASK), before)
        perturb(twin, seed=2)
        use(twin, None)
        assert torch.equal(model(TOKENS, mask=MASK), before)
        assert not torch.equal(twin(TOKENS, mask=MASK), before)


@pytest.mark.parametrize("base", [b for b in BASES.values() if b != "families/bert"])
@every_config
@torch.no_grad()
def test_cached_decoding_is_the_whole_forward(base, config):
    model = adapted(base, config)
    cache, parts = KVCache(model.config, 3, 9, dtype=torch.float64), []
    for at, width in ((0, 4), (4, 1), (5, 1), (6, 3)):
        parts.append(model(TOKENS[:, at : at + width], cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), model(TOKENS), rtol=1e-10, atol=1e-10)


@every_base
@pytest.mark.parametrize("design", DESIGNS)
def test_checkpointing_gives_the_same_gradients(base, design):
    grads = []
    for checkpointing in (False, True):
        model = adapted(base, Bottleneck(design))
        model.checkpointing = checkpointing
        model(TOKENS, mask=MASK).square().mean().backward()
        grads.append({name: p.grad for name, p in trainable(model).items()})
    assert all(bool(grad.any()) for grad in grads[0].values())
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_training_moves_the_adapters_alone():
    model = attach(base_model("families/gpt_neox"), Bottleneck("houlsby", reduction=4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learned, losses = list(trainable(model).values()), []
    optimizer = torch.optim.AdamW(learned, lr=0.01)
    for _ in range(30):
        logits = model(TOKENS)[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def test_the_same_seed_draws_the_same():
    config = Bottleneck("houlsby")
    one, same, other = (
        dict(trainable(attach(base_model("llama_gqa"), config, seed=seed))) for seed in (3, 3, 4)
    )
    assert all(torch.equal(p, same[name]) for name, p in one.items())
    down = [name for name in one if name.endswith("down")]
    assert not any(torch.equal(one[name], other[name]) for name in down)
    assert max(float(one[name].detach().abs().max()) for name in down) <= 24**-0.5
    assert not any(bool(p.any()) for name, p in one.items() if name not in down)


def test_attaching_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    attach(base_model("llama_gqa"), Bottleneck())
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_dropout_is_for_training():
    config = Bottleneck("parallel", bottleneck_dropout=0.5)
    model, plain = adapted("llama_gqa", config), adapted("llama_gqa", Bottleneck("parallel"))
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert not torch.equal(model.train()(TOKENS), plain.train()(TOKENS))


@torch.no_grad()
def test_dropout_keeps_the_size_of_what_it_keeps():
    model = attach(base_model("llama_gqa"), Bottleneck("houlsby", 8, bottleneck_dropout=0.75))
    model.train()
    _, sublayer, change = next(changes(model))
    change.up_bias.fill_(1)
    seen = {}
    model.blocks[0].register_forward_pre_hook(lambda m, given: seen.update(first=given))
    model(TOKENS)
    x, shared = seen["first"]
    added = change(sublayer, x, shared) - sublayer.inner(sublayer.norm(x), shared)
    kept = added.abs() > 1e-9
    torch.testing.assert_close(added[kept], torch.full_like(added[kept], 4))
    assert 0.15 < kept.double().mean() < 0.35


@torch.no_grad()
def test_adapters_by_name():
    model = attach(base_model("families/bert"), Bottleneck("houlsby"), name="a")
    perturb(model, 1, "a")
    one = model(TOKENS, mask=MASK)
    perturb(attach(model, Bottleneck("parallel"), name="b"), 2, "b")
    two = model(TOKENS, mask=MASK)
    assert not torch.equal(one, two)
    assert torch.equal(use(model, "a")(TOKENS, mask=MASK), one)
    assert torch.equal(use(detach(model, "a"), "b")(TOKENS, mask=MASK), two)


def test_what_it_cannot_become():
    model = attach(base_model("llama_gqa"), Bottleneck("houlsby"))
    message = r"Bottleneck at blocks\.0\.attn cannot become weights: a nonlinearity stands between"
    with pytest.raises(ConfigError, match=message):
        merge(model)
    with (
        pytest.raises(ConfigError, match=r"rows: .* allowed .*LoRA"),
        rows(model, ["default", None]),
    ):
        pass


def test_where_they_stand():
    model = attach(base_model("llama_gqa"), Bottleneck("houlsby"))
    paths = [f"blocks.{i}.{name}" for i in range(3) for name in SUBLAYERS]
    assert sorted(path for path, _, _ in changes(model)) == paths
    assert all(isinstance(change, BottleneckLayer) for _, _, change in changes(model))
    model = attach(base_model("llama_gqa"), Bottleneck())
    assert [path for path, _, _ in changes(model)] == paths[1::2]


def test_the_defaults_are_those_of_the_papers():
    houlsby, pfeiffer, parallel = (Bottleneck(design).plan for design in DESIGNS)
    assert (houlsby.reduction, pfeiffer.reduction, parallel.reduction) == (16, 16, 2)
    assert (houlsby.scale, pfeiffer.scale, parallel.scale) == (1, 1, 4)
    assert (houlsby.act, pfeiffer.act, parallel.act) == ("silu", "relu", "relu")
    assert Bottleneck().design == "pfeiffer"
    assert str(Bottleneck("houlsby")) == "houlsby bottlenecks of D/16 on attn,mlp"


@pytest.mark.parametrize(
    ("dim", "reduction", "width"),
    [(24, 16, 1), (24, 5, 4), (24, 100, 1), (24, 2.5, 9), (8, 0.5, 16)],
)
def test_the_width_is_rounded_down(dim, reduction, width):
    assert Bottleneck(reduction=reduction).plan.width(dim) == width


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"design": "lora"}, "design: found lora, allowed houlsby, pfeiffer, parallel"),
        ({"reduction": 0}, "reduction: found 0, allowed"),
        ({"reduction": float("nan")}, "reduction: found nan"),
        ({"reduction": 1e-12}, "reduction: found 1e-12"),
        ({"reduction": True}, "reduction: found True"),
        ({"reduction": "16"}, "reduction: found 16"),
        ({"bottleneck_act": "swish"}, "bottleneck_act: found swish, allowed silu"),
        ({"bottleneck_scale": 0}, "bottleneck_scale: found 0, allowed a number other than 0"),
        ({"bottleneck_scale": float("inf")}, "bottleneck_scale: found inf"),
        ({"bottleneck_scale": float("nan")}, "bottleneck_scale: found nan"),
        ({"bottleneck_dropout": 1}, "bottleneck_dropout: found 1, allowed 0 or more, below 1"),
        ({"bottleneck_dropout": -0.1}, "bottleneck_dropout: found -0.1"),
        ({"sublayers": ("mlp", "ffn")}, "sublayers: found mlp,ffn, allowed attn, mlp"),
        ({"sublayers": ("mlp", "mlp")}, "sublayers: found mlp,mlp"),
    ],
)
def test_what_is_no_configuration(values, message):
    with pytest.raises(ConfigError) as caught:
        Bottleneck(**values)
    assert message in str(caught.value)


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as caught:
        Bottleneck("x", -1, "y", 0, 2, ("z",))
    assert len(str(caught.value).splitlines()) == 6
