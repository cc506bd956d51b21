"""LoRA in PEFT's files, by hand (PEFT's numbers: the goldens; what is refused: adapter_files)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.interop.lora import rank_in, stacked, state_shapes, whole_if
from minift.interop.methods import FORMATS
from minift.interop.module_names import ModuleNames
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.slots import changes

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = FORMATS[LoRA]


def changed(name, config):
    model = attach(load_model(GOLDEN / name), config)
    return model, {path: change for path, _, change in changes(model)}


def test_ranks_and_alphas_of_their_own_are_patterns():
    model, found = changed("llama_gqa", LoRA(rank=2, alpha=4, targets=("q", "v"), ranks={"v": 3}))
    data = FILE.write(model.adapters.configs["default"], ModuleNames(model), found)
    assert (data["r"], data["lora_alpha"], data["target_modules"]) == (3, 4, ["q_proj", "v_proj"])
    assert set(data["rank_pattern"].values()) == {2}
    assert data["alpha_pattern"] == {}


def test_q_k_and_v_of_one_matrix_stack_their_rows_of_A():
    model, found = changed("families/gpt2", LoRA(rank=2, targets=("q", "v")))
    theirs = next(t for t in ModuleNames(model).of(found) if "blocks.0.attn.qkv.q" in t.ours)
    parts = [found.get(path) for path in theirs.ours]
    A, begins = stacked(parts)
    assert torch.equal(A, torch.cat((parts[0].A, parts[2].A)))
    assert begins == [0, 2, 2]
    with torch.no_grad():
        parts[2].A.copy_(parts[0].A)
    assert stacked(parts)[1] == [0, 0, 0]
    tensors = FILE.to_file(theirs, parts)
    D = model.config.dim
    assert tensors["lora_B.weight"].shape == (3 * D, 2)
    assert not tensors["lora_B.weight"][D : 2 * D].any()  # of k, which does not change


def test_a_training_state_is_of_pissa():
    config = LoRA(rank=2, lora_init="pissa", targets=("q",))
    model, found = changed("llama_gqa", config)
    shapes = state_shapes(model, config)
    assert set(shapes) == {f"{path}.{leaf}" for path in found for leaf in ("A", "B", "A0", "B0")}
    assert shapes["blocks.0.attn.qkv.q.A0"] == (2, model.config.dim)


@pytest.mark.parametrize(("value", "shown"), [(16.000000000000004, 16), (0.5, 0.5), (16.0, 16)])
def test_an_alpha_is_written_whole_where_it_is(value, shown):
    assert whole_if(value) == shown
    assert type(whole_if(value)) is type(shown)


def test_the_rank_that_tensors_say():
    assert rank_in({"lora_A.weight": (4, 9)}) == 4
    assert rank_in({"lora_embedding_A": (3, 9)}) == 3
    assert rank_in({"lora_A.weight": (4,)}) == rank_in({}) == 0
