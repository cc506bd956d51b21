"""AdaLoRA's files: hand-worked values, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import FormatError
from minift.formats import safetensors
from minift.interop import adalora
from minift.interop.adapter_files import load_adapter, stored
from minift.peft.adapters import disabled

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_gqa"
AT = "base_model.model.model.layers.{}.self_attn.q_proj."


def written(folder, tensors, **options):
    folder.mkdir(exist_ok=True)
    data = {
        "peft_type": "ADALORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny",
        "lora_alpha": 6, "init_r": 4, "target_r": 2, "total_step": 100, "tinit": 1, "tfinal": 5,
        "deltaT": 1, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5, "r": 8,
        "target_modules": ["q_proj"],
        "rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [True, False, True, False]},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(data | options))
    safetensors.write(folder / "adapter_model.safetensors", tensors)
    return folder


def factors(layer, rank, inputs, outputs, scale=1.0):
    at, ramp = AT.format(layer), torch.arange(rank * inputs).float().view(rank, inputs) / 100
    return {
        at + "lora_A": ramp,
        at + "lora_B": torch.ones(outputs, rank) * scale,
        at + "lora_E": torch.arange(1, rank + 1).float()[:, None],
    }


def test_singular_values_go_into_a_by_hand(tmp_path):
    tensors = factors(0, 2, 3, 2)
    file = adalora.AsLoRA(
        safetensors.read(written(tmp_path, tensors) / "adapter_model.safetensors")
    )
    at = AT.format(0)
    assert sorted(file.tensors) == [at + "lora_A.weight", at + "lora_B.weight"]
    # rows (0 .01 .02) * 1 and (.03 .04 .05) * 2, by 2 / (2 + 1e-5)
    by_hand = torch.tensor([[0.0, 0.01, 0.02], [0.06, 0.08, 0.10]]) * (2 / 2.00001)
    torch.testing.assert_close(file.load(at + "lora_A.weight"), by_hand, rtol=1e-6, atol=0)
    assert torch.equal(file.load(at + "lora_B.weight"), torch.ones(2, 2))


def test_each_matrix_has_its_rank_and_the_scale_of_it(tmp_path):
    base = load_model(GOLDEN)
    width, outputs = base.config.dim, base.config.heads * base.config.head_dim
    ranks = {layer: 2 + layer for layer in range(base.config.layers)}
    tensors = {}
    for layer, rank in ranks.items():
        tensors |= factors(layer, rank, width, outputs, 1e-3)
    folder = written(tmp_path, tensors)
    assert "LoRA" in stored(folder).summary()
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        model = load_adapter(base, folder)
        out = model(tokens)
        with disabled(model):
            assert not torch.equal(model(tokens), out)
        # The same by hand: alpha / (R + 1e-5) B (E A) added to each weight.
        for layer, rank in ranks.items():
            own = factors(layer, rank, width, outputs, 1e-3)
            a, b, e = (own[AT.format(layer) + leaf] for leaf in ("lora_A", "lora_B", "lora_E"))
            weight = model.blocks[layer].attn.qkv.q.weight
            weight += (6 / (rank + 1e-5) * (b @ (e * a))).to(weight.dtype)
        with disabled(model):
            torch.testing.assert_close(model(tokens), out, rtol=1e-5, atol=1e-5)


def hostile():
    """name -> (what reads it in a folder, the code of the refusal)."""

    def case(change, **options):
        def attempt(folder):
            tensors = factors(0, 2, 3, 2)
            change(tensors)
            stored(written(folder, tensors, **options)).tensors  # noqa: B018

        return attempt

    def put(leaf, value):
        return lambda tensors: tensors.__setitem__(AT.format(0) + leaf, value)

    def drop(leaf):
        return lambda tensors: tensors.pop(AT.format(0) + leaf)

    return {
        "no singular values": (case(drop("lora_E")), "missing-field"),
        "singular values in a row": (case(put("lora_E", torch.ones(1, 2))), "shape-mismatch"),
        "more of them": (case(put("lora_E", torch.ones(3, 1))), "shape-mismatch"),
        "a number for A": (case(put("lora_A", torch.tensor(1.0))), "shape-mismatch"),
        "truth values": (case(put("lora_E", torch.ones(2, 1, dtype=torch.bool))), "bad-dtype"),
    }


@pytest.mark.parametrize("name", hostile())
def test_what_is_refused(name, tmp_path):
    attempt, code = hostile()[name]
    with pytest.raises(FormatError) as caught:
        attempt(tmp_path)
    assert caught.value.code == code
