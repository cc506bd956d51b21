from pathlib import Path

import pytest

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA, LoRALayer
from minift.peft.methods import attach

BASE = Path(__file__).parents[1] / "golden" / "llama_gqa"


def test_attaching_freezes_everything_else():
    model = attach(load_model(BASE), LoRA(rank=2, targets=("q",)))
    made = {f"blocks.{i}.attn.qkv.changes.q.default.{letter}" for i in range(3) for letter in "AB"}
    assert set(trainable(model)) == made
    assert isinstance(model.blocks[0].attn.qkv.changes["q"]["default"], LoRALayer)


def test_a_config_of_no_method_is_refused():
    with pytest.raises(ConfigError, match=r"attach: found dict, allowed .*LoRA"):
        attach(load_model(BASE), {})
