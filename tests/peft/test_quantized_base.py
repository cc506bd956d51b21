"""Every method on a base in few bits: the same maths as on the dense base of the same values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import minift
from minift.checkpoints.gguf_model import write
from minift.checkpoints.open import load_model
from minift.checkpoints.save import save
from minift.errors import ConfigError
from minift.kernels.quantized.linear import QuantizedLinear, base_of, dense_tensors, quantized
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.adapters import trainable
from minift.peft.merge import check_kinds
from minift.peft.methods import count
from minift.peft.slots import linears

BASES = ("int8", "nf4", "gguf")
METHODS = {
    "lora": minift.LoRA(rank=4),
    "rslora": minift.LoRA(rank=4, rslora=True, targets=("q", "down")),
    "dora": minift.LoRA(rank=4, dora=True),
    "pissa": minift.LoRA(rank=4, lora_init="pissa"),
    "with embed and head": minift.LoRA(rank=4, targets=("all", "embed", "head")),
    "ia3": minift.IA3(),
    "bitfit": minift.BitFit(),
    "prefix": minift.Prefix(),
    "prompt": minift.Prompt(),
    "ptuning": minift.PTuning(),
}
MERGES = ("lora", "rslora", "dora", "pissa", "ia3", "bitfit")


@pytest.fixture(scope="module")
def files(tiny_tokenizer, tmp_path_factory):
    """A random Llama of two layers as a folder and as a file of Q8_0 blocks."""
    config = ModelConfig(
        family="llama", vocab=tiny_tokenizer.vocab_size, dim=64, layers=2, heads=4, kv_heads=2,
        head_dim=16, ff=96, context=128, tied=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config, "models/small")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    folder = tmp_path_factory.mktemp("models")
    save(model, tiny_tokenizer, folder / "hf")
    write(model, tiny_tokenizer, folder / "a.gguf", "Q8_0")
    return folder


def opened(files, base, dtype="float32"):
    model = load_model(files / ("a.gguf" if base == "gguf" else "hf"), base=base, dtype=dtype)
    return model.eval()


def dense_twin(model):
    """A plain model of the same values."""
    twin = Transformer(model.config, model.source).to(model.embed.weight.dtype)
    for name, tensor in dense_tensors(model).items():
        twin.get_parameter(name).data = tensor.clone()
    return twin.eval()


def perturbed(model, seed=5):
    """Every trainable number moved, so that nothing is still at its idle start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise.to(parameter.dtype))
    return model


TOKENS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def outputs(model, tokens=TOKENS):
    """Logits, and the gradient of their square of every trainable."""
    logits = model(tokens)
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in trainable(model).items()}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients_are_those_on_the_dense_base(files, base, method):
    one = opened(files, base, "float64")
    other = dense_twin(one)
    pairs = [perturbed(minift.attach(model, METHODS[method])) for model in (one, other)]
    assert not any(p.requires_grad for n, p in one.named_parameters() if n not in trainable(one))
    assert trainable(one).keys() == trainable(other).keys()
    assert count(one, METHODS[method]) == sum(p.numel() for p in trainable(one).values())
    (logits, gradients), (expected, wanted) = map(outputs, pairs)
    assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-12)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-8, atol=1e-12), name


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "bitfit"])
def test_in_the_dtypes_of_training_too(files, method, dtype):
    one = opened(files, "nf4", dtype)
    other = dense_twin(one)
    for model in (one, other):
        perturbed(minift.attach(model, METHODS[method]))
    for tokens in (TOKENS, TOKENS[:1, :1]):
        difference = (one(tokens) - other(tokens)).abs().max()
        assert difference <= (1e-5 if dtype == "float32" else 0.05) * other(tokens).abs().max()


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_nothing_of_a_weights_size_waits_for_the_backward_pass(files, method):
    model = opened(files, "nf4")
    minift.attach(model, METHODS[method])
    kept = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(TOKENS)
    shapes = {(linear.out_features, linear.in_features) for _, linear in linears(model)}
    shapes |= {shape[::-1] for shape in shapes}
    assert kept
    assert not shapes & set(kept)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit", "prefix"])
def test_disabled_is_the_quantised_base_bit_for_bit(files, base, method):
    model = opened(files, base)
    with torch.no_grad():
        expected = model(TOKENS)
        perturbed(minift.attach(model, METHODS[method]))
        assert not torch.equal(model(TOKENS), expected)
        with minift.disabled(model):
            assert torch.equal(model(TOKENS), expected)


def test_rows_have_adapters_of_their_own(files):
    model = opened(files, "nf4")
    with torch.no_grad():
        base = model(TOKENS)
        perturbed(minift.attach(model, minift.LoRA(rank=2), name="a"))
        changed = model(TOKENS)
        with minift.rows(model, ["a", None]):
            mixed = model(TOKENS)
    assert torch.allclose(mixed[0], changed[0], atol=1e-5)
    assert torch.allclose(mixed[1], base[1], atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_training_lowers_the_loss_and_leaves_the_base(files, base, tiny_tokenizer, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "Review: good.", "completion": " yes"}\n' * 8)
    model = opened(files, base)
    before = {path: copy.deepcopy(linear.stored) for path, linear in quantized(model)}
    minift.attach(model, minift.LoRA(rank=4))
    objective = minift.SFT(tiny_tokenizer, train=str(data))
    run = minift.fit(
        model,
        objective,
        minift.TrainConfig(steps=12, batch_size=4, lr=0.01, threads=1),
        out=tmp_path / "run",
    )
    assert run.losses[-1] < 0.5 * run.losses[0]
    for path, linear in quantized(model):
        for name, tensor in linear.stored.items():
            assert torch.equal(tensor, before[path][name])
    # The adapter's folder is as any other: it loads on the same base, and on the dense one.
    model.eval()
    again = minift.load_adapter(opened(files, base), tmp_path / "run")
    assert torch.equal(again(TOKENS), model(TOKENS))
    minift.load_adapter(opened(files, None), tmp_path / "run")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", MERGES)
def test_merging_makes_changed_places_dense_and_shares_the_rest(files, base, method):
    model = opened(files, base, "float64")
    perturbed(minift.attach(model, METHODS[method]))
    merged = minift.merge(model)
    with torch.no_grad():
        assert torch.allclose(merged(TOKENS), model(TOKENS), rtol=1e-9, atol=1e-10)
    kept = {path for path, _ in quantized(merged)}
    for path, linear in linears(model):
        mine = merged.get_submodule(path)
        assert (path in kept) == isinstance(mine, QuantizedLinear)
        if path in kept:  # the same tensors, not copies of them
            assert isinstance(linear, QuantizedLinear)
            for name in linear.names:
                assert mine.get_buffer(name).data_ptr() == linear.get_buffer(name).data_ptr()
        else:
            assert type(mine) is nn.Linear
            assert mine.weight.dtype == torch.float64
    expected = {"lora": 0, "dora": 0, "pissa": 0, "rslora": 10, "ia3": 8, "bitfit": 14}
    assert len(kept) == expected[method]
    assert base_of(model) == base  # the adapted one is as it was


@pytest.mark.parametrize("base", BASES)
def test_merging_back_into_the_format_and_what_it_costs(files, base):
    model = opened(files, base)
    perturbed(minift.attach(model, METHODS["lora"]))
    dense, small = minift.merge(model), minift.merge(model, requantize=True)
    assert base_of(dense) is None
    assert base_of(small) == base
    assert len(list(quantized(small))) == 14
    for path, linear in quantized(small):  # encoded from the merged weight
        weight = dense.get_submodule(path).weight
        expected = QuantizedLinear.of(linear.kind, weight)
        assert torch.equal(linear.weight, expected.weight)
    near, far = (minift.merge_error(model, one, TOKENS) for one in (dense, small))
    assert near.kl < 1e-6 < far.kl
    assert near.logit < far.logit


def test_requantize_needs_a_format_that_is_written(files):
    plain = minift.attach(opened(files, None), minift.LoRA(rank=2))
    with pytest.raises(ConfigError, match="requantize: found a dense base"):
        minift.merge(plain, requantize=True)
    model = minift.attach(opened(files, "gguf"), minift.LoRA(rank=2, targets=("q",)))
    for _, linear in quantized(model):
        linear.kind = "Q4_K"
    with pytest.raises(ConfigError, match="requantize: found Q4_K, which minift reads only"):
        check_kinds(model, {"blocks.0.attn.qkv.q.weight": torch.empty(0)})


def test_an_adapter_that_is_not_finite_cannot_be_encoded(files):
    model = minift.attach(opened(files, "int8"), minift.LoRA(rank=2, targets=("q",)))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.fill_(float("nan"))
    with pytest.raises(ConfigError, match="does not fit int8: a weight that is not finite"):
        minift.merge(model, requantize=True)


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("base", BASES)
def test_exports_are_dense_and_say_the_same(files, base, to, tiny_tokenizer, tmp_path):
    model = opened(files, base)
    perturbed(minift.attach(model, METHODS["rslora"]))
    done = minift.export(model, tiny_tokenizer, tmp_path / "m", to=to, dtype="F32")
    assert done.kl < 1e-6
    assert done.same == done.texts


def test_saving_with_an_adapter_is_refused_as_on_a_dense_base(files, tiny_tokenizer, tmp_path):
    model = minift.attach(opened(files, "nf4"), minift.LoRA(rank=2))
    with pytest.raises(ConfigError, match="merge it first"):
        minift.save(model, tiny_tokenizer, tmp_path / "m")
    minift.save(minift.merge(model), tiny_tokenizer, tmp_path / "m")
    assert base_of(load_model(tmp_path / "m")) is None


def test_recomputed_blocks_give_the_same_gradients(files):
    model = perturbed(minift.attach(opened(files, "nf4", "float64"), minift.LoRA(rank=2)))
    _, expected = outputs(model)
    for parameter in trainable(model).values():
        parameter.grad = None
    model.checkpointing = True
    _, found = outputs(model)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
