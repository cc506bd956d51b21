"""Decode weights compute what the model computes, and nothing of them outlives its block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.generation.cache import KVCache
from minift.generation.decode import decode
from minift.generation.decode_weights import GroupWeights, decode_weights, obstacle
from minift.kernels.choice import using
from minift.kernels.linear.packed import CALLS, Packed, possible
from minift.kernels.quantized.linear import QuantizedLinear
from minift.kernels.quantized.stacked import Stacked
from minift.model.config import ModelConfig
from minift.model.transformer import Projections, Transformer
from minift.peft.adapters import disabled, rows, trainable, use
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA, changes_of
from minift.peft.methods import attach
from minift.peft.slots import linears

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ["gemma", "gemma2", "gemma2_odd", "gemma3", "gpt2", "gpt_neox", "gpt_neox_serial",
            "mistral", "mistral_odd", "qwen2", "qwen2_window", "qwen3", "llama_dynamic",
            "llama_yarn"]  # fmt: skip
PROMPTS = [[5], [7, 30, 2, 2, 19], [11, 3, 36], [5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
MANY = 1000  # tokens, so that everything that can be packed is
TINY = ModelConfig("llama", 61, 32, 2, 4, 2, 8, 64, 64)

packs = pytest.mark.skipif(not possible(), reason="this CPU or torch packs no bf16")


def tiny(dtype=torch.float64, seed=4):
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(TINY)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.4 if p.dim() > 1 else 0.1))
            if p.dim() == 1:
                p += 1
    return model.to(dtype).eval().requires_grad_(False)


def perturbed(model, config, name="default"):
    """The model with an adapter whose every number is away from its start."""
    attach(model, config, name=name)
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for p in trainable(model).values():
            p += torch.randn(p.shape, generator=generator).to(p.dtype) * 0.2
    return model.eval()


@torch.no_grad()
def recomputed(model, ids, count):
    """Greedy tokens by the readable kernels: no cache, no batch, nothing prepared."""
    ids, start = list(ids), len(ids)
    with using("reference"):
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[start:]


def stepped(model, tokens=MANY, columns=3):
    """Logits (B, T, V) of a prompt of 6 and some further tokens, one at a time."""
    B = 2
    text = torch.arange(B * (6 + columns)).view(B, -1) % model.config.vocab
    with torch.no_grad(), decode_weights(model, tokens) as weights:
        cache = KVCache(model.config, B, 6 + columns, dtype=model.embed.weight.dtype)
        parts = [model(text[:, :6], cache=cache, hidden_only=True)]
        for t in range(6, 6 + columns):
            parts.append(model(text[:, t : t + 1], cache=cache, hidden_only=True))
        return weights.logits(torch.cat(parts, dim=1))


def plain(model, columns=3):
    with using("reference"):
        return stepped(model, columns=columns)


# With dynamic angles what is cached keeps those of its time, as in the reference implementation.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama_dynamic"])
def test_every_family_goes_on_with_the_tokens_of_the_forward_pass(family):
    model = load_model(GOLDEN / "families" / family).double().eval()
    prompts = [[i % model.config.vocab for i in ids] for ids in PROMPTS]
    expected = [recomputed(model, ids, 9) for ids in prompts]
    assert decode(model, prompts, max_new_tokens=9) == expected
    assert [decode(model, [ids], max_new_tokens=9)[0] for ids in prompts] == expected


@packs
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_bf16_is_no_further_from_the_exact_model(family):
    model = load_model(GOLDEN / "families" / family).bfloat16().eval()
    exact = plain(load_model(GOLDEN / "families" / family).bfloat16().double().eval())
    mine, other = stepped(model).double(), plain(model).double()
    # The same roundings in the same places, but for attention's, which here has float32 columns.
    assert float((mine - exact).norm()) < 1.2 * float((other - exact).norm()) + 1e-9


@packs
def test_bf16_is_packed_only_where_there_are_tokens_enough():
    model = tiny(torch.bfloat16)
    groups = [m for m in model.modules() if isinstance(m, Projections)]
    for tokens, expected in ((CALLS - 1, False), (CALLS, True)):
        with torch.no_grad(), decode_weights(model, tokens):
            model(torch.tensor([[1, 2]]))
            made = [isinstance(group.together.outputs, Packed) for group in groups]
        assert made == [expected] * 8


@pytest.mark.parametrize("config", [
    LoRA(rank=3, alpha=5), LoRA(rank=2, targets=("q", "v", "down")),
    LoRA(rank=2, lora_init="pissa"), LoRA(rank=2, dora=True), IA3(),
    LoRA(rank=2, targets=("v", "embed", "head")),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_adapters(config, dtype):
    limits = {torch.float64: 1e-11, torch.float32: 1e-4}
    model = perturbed(tiny(dtype), config)
    mine, twin = stepped(model).double(), plain(model).double()
    if dtype in limits:  # 16 products deep, each to its last bits, logits of size 10
        torch.testing.assert_close(mine, twin, rtol=0, atol=limits[dtype])
        return
    exact = plain(perturbed(tiny(dtype).double(), config))
    assert float((mine - exact).norm()) < 1.3 * float((twin - exact).norm())


def test_lora_is_two_products_a_group():
    model = perturbed(tiny(torch.float32), LoRA(rank=3))
    group = model.blocks[0].attn.qkv
    with torch.no_grad(), decode_weights(model, 1):
        model(torch.tensor([[1]]))
        assert isinstance(group.together, GroupWeights)
        assert group.together.outputs is not None
        assert model.blocks[0].mlp.together is None


def test_a_base_in_eight_bits_keeps_its_own_product_under_an_adapter():
    model = tiny(torch.bfloat16)
    for path, linear in list(linears(model)):
        model.set_submodule(path, QuantizedLinear.of("int8", linear.weight))
    perturbed(model, LoRA(rank=3))
    mine, twin = stepped(model).double(), plain(model).double()
    # 16 bf16 products in a row, each rounded twice where the twin rounds all weights.
    assert float((mine - twin).norm() / twin.norm()) < 0.03


@pytest.mark.parametrize(("tokens", "copies"), [(CALLS - 1, [1]), (CALLS, [3, 1, 2])])
def test_codes_are_stacked_only_where_there_are_tokens_enough(tokens, copies, monkeypatch):
    model, made, honest = tiny(torch.bfloat16), [], Stacked.__init__
    for path, linear in list(linears(model)):
        model.set_submodule(path, QuantizedLinear.of("int8", linear.weight))
    monkeypatch.setattr(Stacked, "__init__", lambda self, m: made.append(len(m)) or honest(self, m))
    with torch.no_grad(), decode_weights(model, tokens):
        model(torch.tensor([[1, 2]]))
    assert set(made) == set(copies)


def test_what_a_caller_makes_can_be_trained_with():
    weight = torch.ones(3, requires_grad=True)
    kept = []
    decode(tiny(torch.float32), [[1, 2]], max_new_tokens=3,
           emit=lambda row, token: kept.append(torch.full((3,), float(token))))  # fmt: skip
    (kept[-1] * weight).sum().backward()
    assert torch.equal(weight.grad, kept[-1])


def test_hooks_on_a_linear_are_heard():
    model, heard = tiny(torch.bfloat16), []
    model.blocks[1].attn.qkv.k.register_forward_hook(lambda *_: heard.append("k"))
    model.head.register_forward_hook(lambda *_: heard.append("head"))
    decode(model, [[1, 2]], max_new_tokens=CALLS)
    assert heard.count("k") == heard.count("head") == CALLS


def test_every_change_between_two_calls_is_seen():
    model, dtype = tiny(torch.bfloat16), torch.bfloat16
    seen = [decode(model, PROMPTS, max_new_tokens=CALLS)]

    def differs():
        seen.append(decode(model, PROMPTS, max_new_tokens=CALLS))
        return seen[-1] != seen[-2]

    assert not differs()
    with torch.no_grad():
        model.blocks[0].attn.qkv.k.weight.mul_(-1)
    assert differs()
    model.blocks[1].mlp.out.down.weight.data = -model.blocks[1].mlp.out.down.weight.data
    assert differs()
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.roll(1, 0))
    assert differs()
    base = seen[-1]
    perturbed(model, LoRA(rank=4, alpha=32), name="a")
    assert differs()
    with disabled(model):
        assert decode(model, PROMPTS, max_new_tokens=CALLS) == base
    assert not differs() or seen[-1] == seen[-2]
    perturbed(model, LoRA(rank=4, alpha=32), name="bb")
    assert differs()
    with torch.no_grad():
        changes_of(model, "bb")["blocks.0.attn.qkv.q"].B.mul_(-3)
    assert differs()
    use(model, None)
    assert decode(model, PROMPTS, max_new_tokens=CALLS) == base
    assert model.embed.weight.dtype == dtype


def test_rows_with_adapters_of_their_own():
    model = perturbed(tiny(), LoRA(rank=3, alpha=16), name="a")
    perturbed(model, LoRA(rank=2, alpha=16), name="b")
    names = ["a", None, "b", "b", "a"]
    prompts = [[5], [5], [5], [5], [7, 1]]  # equal prompts, unequal adapters
    alone = []
    for prompt, name in zip(prompts, names, strict=True):
        use(model, name)
        alone.append(recomputed(model, prompt, 8))
    with rows(model, names):
        assert decode(model, prompts, max_new_tokens=8) == alone
    assert len(set(map(tuple, alone[:3]))) == 3  # else it would show nothing


@pytest.mark.parametrize("adapted", [False, True])
def test_the_model_is_as_it_was_even_after_an_error(adapted):
    model = tiny(torch.bfloat16)
    if adapted:
        perturbed(model, LoRA(rank=2))
    before = [getattr(module, "together", None) for module in model.modules()]
    names = [name for name, _ in model.named_parameters()]

    def broken(row, token):
        assert [getattr(m, "together", None) for m in model.modules()] != before
        raise OSError("the reader is gone")

    with pytest.raises(OSError, match="reader"):
        decode(model, [[1]], max_new_tokens=CALLS, emit=broken)
    assert [getattr(module, "together", None) for module in model.modules()] == before
    assert [name for name, _ in model.named_parameters()] == names


def test_readable_kernels_and_gradients_prepare_nothing():
    model = tiny(torch.bfloat16)
    with using("reference"), torch.no_grad(), decode_weights(model, MANY) as weights:
        assert weights.logits == model.logits
        assert not weights.complete
        assert model.blocks[0].attn.qkv.together is None
    with decode_weights(model, MANY) as weights:
        assert weights.logits == model.logits


@pytest.mark.parametrize(("config", "whole"), [
    (None, True), (LoRA(rank=2), True), (LoRA(rank=2, dora=True, targets=("q",)), False),
])  # fmt: skip
def test_whether_all_is_ready(config, whole):
    model = tiny(torch.float32) if config is None else perturbed(tiny(torch.float32), config)
    with torch.no_grad(), decode_weights(model, 1) as weights:
        assert not weights.complete  # nothing was asked yet
        model(torch.tensor([[1]]))
        assert weights.complete == whole


@pytest.mark.parametrize(("kind", "dtype", "told"), [
    ("int8", torch.bfloat16, None), ("Q4_0", torch.bfloat16, None),
    ("Q4_1", torch.bfloat16, None), ("nf4", torch.bfloat16, "nf4 has no product of its own"),
    ("Q8_0", torch.bfloat16, "Q8_0 has no product of its own"),
    ("int8", torch.float32, "the work is in float32, which needs --dtype bf16"),
])  # fmt: skip
def test_bases_in_few_bits(kind, dtype, told):
    model = tiny(dtype)
    assert obstacle(model) is None
    for path, linear in list(linears(model)):
        model.set_submodule(path, QuantizedLinear.of(kind, linear.weight))
    assert obstacle(model) == told
    mine, twin = stepped(model).double(), plain(model).double()
    # 14 products in a row, each of which rounds its output, its scales or its weights to 8 bits.
    limit = 14**0.5 * 2**-6 if dtype == torch.bfloat16 else 1e-5
    assert float((mine - twin).norm() / twin.norm()) < limit
