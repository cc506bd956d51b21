"""A base in few bits while it is read: which linears, their bits, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.frozen_base import BASES, checked, counts, kind_of, weights
from minift.checkpoints.gguf_model import write
from minift.checkpoints.mapping import TRANSFORMS, WHOLE_ROWS, Pair
from minift.checkpoints.open import load, load_model
from minift.checkpoints.save import save
from minift.errors import ConfigError, FormatError
from minift.formats import gguf, safetensors
from minift.kernels.quantized.linear import QuantizedLinear, base_of, quantized
from minift.kernels.quantized.reference import dequantize
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILY_FOLDERS = ("gpt2", "gpt_neox", "qwen2", "qwen3", "gemma2_odd", "bert", "roberta_labels")


def small(tokenizer, **changes) -> Transformer:
    config = ModelConfig(
        family="llama", vocab=tokenizer.vocab_size, dim=64, layers=2, heads=4, kv_heads=2,
        head_dim=8, ff=96, context=128, tied=True, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config, "models/small")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    return model


@pytest.fixture(scope="module")
def file(tiny_tokenizer, tmp_path_factory):
    """The small model as blocks of one kind: `file("Q4_1")`."""
    folder = tmp_path_factory.mktemp("gguf")

    def make(kind):
        path = folder / f"{kind}.gguf"
        if not path.exists():
            write(small(tiny_tokenizer), tiny_tokenizer, path, kind)
        return path

    return make


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_every_projection_is_stored_and_nothing_else(base):
    dense, model = load_model(GOLDEN / "llama_gqa"), load_model(GOLDEN / "llama_gqa", base=base)
    assert base_of(dense) is None
    assert base_of(model) == base
    assert {f"{path}.weight" for path, _ in quantized(model)} == weights(model)
    assert len(weights(model)) == 7 * model.config.layers
    named = dict(model.named_parameters())
    for name, parameter in dense.named_parameters():
        if name in weights(model):
            assert name not in named
            path = name.removesuffix(".weight")
            expected = QuantizedLinear.of(base, parameter)
            assert torch.equal(model.get_submodule(path).weight, expected.weight)
        else:
            assert torch.equal(named.pop(name), parameter)
    assert not named


@pytest.mark.parametrize("family", FAMILY_FOLDERS)
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_every_family_runs(family, base):
    """Split, turned and biased weights among them: int8 is close, nf4 is finite."""
    place = GOLDEN / "families" / family
    dense, model = load_model(place), load_model(place, base=base)
    assert counts(model)[0][base] == len(weights(model))
    tokens = torch.arange(12).view(2, 6) % dense.config.vocab
    with torch.no_grad():
        expected, found = dense.eval()(tokens), model.eval()(tokens)
    assert found.isfinite().all()
    if base == "int8":
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_biases_before_and_after_their_weights(tmp_path):
    place = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama_biased", place)
    dense = load_model(place)
    model = load_model(place, base="nf4")
    for name, parameter in dense.named_parameters():
        if name.endswith(".bias"):
            assert torch.equal(model.get_parameter(name), parameter)
    assert all(linear.bias.device.type == "cpu" for _, linear in quantized(model)
               if linear.bias is not None)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bf16", "float64"])
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_the_dtype_is_that_of_the_work(base, dtype):
    model = load_model(GOLDEN / "llama_gqa", base=base, dtype=dtype)
    exact = load_model(GOLDEN / "llama_gqa", base=base)
    wanted = model.embed.weight.dtype
    for path, linear in quantized(model):  # encoded from the file's values, whatever the dtype
        assert torch.equal(linear.weight, exact.get_submodule(path).weight.to(wanted))
    assert model(torch.tensor([[1, 2, 3]])).dtype == wanted


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_kept_as_they_are(file, kind):
    """The values are those of the dense load, so the outputs are, bit for bit."""
    dense, model = load_model(file(kind)), load_model(file(kind), base="gguf")
    assert counts(model)[0] == {kind: 14}
    for path, linear in quantized(model):
        assert torch.equal(linear.weight, dense.get_submodule(path).weight)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(model(tokens), dense(tokens))
    raw = gguf.read(file(kind)).blocks("blk.1.ffn_down.weight")
    assert torch.equal(model.blocks[1].mlp.out.down.stored["blocks"], raw)
    assert torch.equal(dequantize(kind, raw), dense.blocks[1].mlp.out.down.weight)


def test_the_rows_of_q_move_as_whole_blocks(file):
    found = gguf.read(file("Q8_0"))
    model = load_model(file("Q8_0"), base="gguf")
    raw = found.blocks("blk.0.attn_q.weight").numpy()
    # Head h, pair p, half s: the file has row 2 p + s of the head where we have E / 2 s + p.
    rows = [h * 8 + 2 * p + s for h in range(4) for s in range(2) for p in range(4)]
    mine = model.blocks[0].attn.qkv.q.stored["blocks"].numpy()
    assert np.array_equal(mine, raw[rows])
    assert not np.array_equal(mine, raw)


@pytest.mark.parametrize("how", WHOLE_ROWS)
def test_a_way_that_keeps_rows_whole_gives_bytes_and_values_the_same_rows(how):
    config = ModelConfig(
        family="llama", vocab=8, dim=8, layers=1, heads=4, kv_heads=4, head_dim=4, ff=8,
        context=8, tied=True,
    )  # fmt: skip
    wide = {"q|k|v": 48, "q|k|v per head": 48}.get(how, 16)
    rows = torch.arange(wide)[:, None]
    one = TRANSFORMS[how].load(config, rows.repeat(1, 5))
    other = TRANSFORMS[how].load(config, rows.to(torch.uint8).repeat(1, 3))
    assert [x[:, 0].tolist() for x in one] == [x[:, 0].tolist() for x in other]
    assert all(bool((x == x[:, :1]).all()) for x in one)
    assert sorted(int(x) for part in one for x in part[:, 0]) == list(range(wide))


def test_what_the_file_has_in_no_blocks_stays_dense():
    pair = Pair("theirs", ("a.weight",), "=")
    small_set = {"a.weight"}
    assert kind_of("gguf", pair, "Q6_K", small_set) == "Q6_K"
    assert kind_of("gguf", pair, "F16", small_set) is None
    assert kind_of("gguf", Pair("theirs", ("a.weight",), "transpose"), "Q8_0", small_set) is None
    assert kind_of("nf4", Pair("theirs", ("a.weight",), "transpose"), "Q8_0", small_set) == "nf4"
    assert kind_of("nf4", Pair("theirs", ("b.weight",), "="), "F32", small_set) is None
    assert kind_of(None, pair, "Q8_0", small_set) is None
    assert not {how for how in TRANSFORMS if "transpose" in how} & set(WHOLE_ROWS)


def test_a_file_of_mixed_kinds_says_what_stays_dense(tiny_tokenizer, tmp_path, monkeypatch):
    from minift.formats import gguf_write

    honest = gguf_write.stored_as
    path = tmp_path / "mixed.gguf"

    def stored_as(kind, shape):  # as if a row of 96 fitted no block
        return "F32" if shape[-1] == 96 else honest(kind, shape)

    monkeypatch.setattr(gguf_write, "stored_as", stored_as)
    write(small(tiny_tokenizer), tiny_tokenizer, path, "Q4_0")
    model = load_model(path, base="gguf")
    found, size = counts(model)
    assert found == {"Q4_0": 12, "dense": 2}
    assert size == 18 / 32


def test_wrong_words_and_files_are_one_line_each(file, tmp_path):
    assert BASES == ("int8", "nf4", "gguf")
    assert checked(None) is None
    for call in (checked, lambda base: load("nowhere", base=base)):
        with pytest.raises(ConfigError, match="base: found int4, allowed int8, nf4, gguf"):
            call("int4")
    with pytest.raises(ConfigError, match=r"base: gguf keeps a \.gguf file's blocks, .* is none"):
        load_model(GOLDEN / "llama_gqa", base="gguf")
    with pytest.raises(ConfigError, match=r"base: no linear of .* is stored in blocks"):
        load_model(file("F16"), base="gguf")


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path):
    place = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama_gqa", place)
    data = safetensors.read(place / "model.safetensors")
    tensors = {name: data.load(name) for name in data.tensors}
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors[
        "model.layers.0.mlp.up_proj.weight"
    ].fill_(float("nan"))
    safetensors.write(place / "model.safetensors", tensors)
    load_model(place)
    with pytest.raises(FormatError, match=r"blocks\.0\.mlp\.hidden\.up"):
        load_model(place, base="int8")


@pytest.mark.parametrize("base", ["int8", "nf4", "gguf"])
def test_saving_writes_what_the_base_computes_with(base, file, tiny_tokenizer, tmp_path):
    model = load_model(file("Q8_0"), base=base)
    save(model, tiny_tokenizer, tmp_path / "hf")
    save(model, tiny_tokenizer, tmp_path / "a.gguf")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(tokens)
        for path in (tmp_path / "hf", tmp_path / "a.gguf"):
            again = load_model(path)
            assert base_of(again) is None
            assert torch.equal(again(tokens), expected)
    assert "quantization_config" not in json.loads((tmp_path / "hf/config.json").read_text())


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_loading_holds_one_dense_tensor_at_a_time(base, monkeypatch):
    """When a tensor is encoded, the linears before it hold no dense weight any more."""
    from minift.checkpoints import frozen_base

    honest, dense = frozen_base.encode, []

    def watched(kind, tensor):
        live = [p for p in seen[0].named_parameters() if p[1].device.type == "cpu"]
        dense.append([name for name, _ in live if name in weights(seen[0])])
        return honest(kind, tensor)

    seen = []
    store = frozen_base.store
    monkeypatch.setattr(frozen_base, "encode", watched)
    monkeypatch.setattr(frozen_base, "store", lambda m, *rest: (seen.insert(0, m), store(m, *rest)))
    load_model(GOLDEN / "llama_gqa", base=base)
    assert dense == [[]] * len(weights(seen[0]))


@pytest.mark.assets
@pytest.mark.parametrize(("base", "most"), [("int8", 1.01), ("nf4", 0.57), ("gguf", 20 / 32)])
def test_the_real_checkpoint_takes_so_many_bytes_a_weight(asset, base, most):
    model = load_model(asset("smollm2-135m-instruct"), base=base)
    linears = [linear for _, linear in quantized(model)]
    size = sum(b.numel() * b.element_size() for one in linears for b in one.buffers())
    assert len(linears) == 210
    numbers = sum(one.in_features * one.out_features for one in linears)
    assert numbers == 106_168_320
    assert size / numbers <= most
    assert not any("blocks" in name and p.dim() == 2 for name, p in model.named_parameters())


def test_the_families_that_gguf_spells_all_keep_rows_of_their_linears():
    """A family whose linears a GGUF file has turned would silently stay dense."""
    spelled = [family.gguf for family in FAMILIES.values() if family.gguf is not None]
    rows = [row for layout in spelled for row in layout.weights if row.ours.endswith("weight")]
    ways = {row.transform for row in rows if re.search(r"\.(qkv|out|hidden)\.", row.ours)}
    assert len(ways) > 2
    assert ways <= set(WHOLE_ROWS)
