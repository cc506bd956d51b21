"""`trainable_token_indices` of a file (PEFT's numbers of the same: the goldens)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import FormatError
from minift.interop.adapter_files import CONFIG, load_adapter, save_adapter
from minift.peft.lora import LoRA
from minift.peft.methods import attach

GOLDEN = Path(__file__).parents[1] / "golden"
APART, TABLE, NEW = "llama_gqa", ("embed",), (9, 4)


def model(name):
    return load_model(GOLDEN / name, dtype=torch.float64).eval()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("9", "not lists of ids"),
        ([9.0, 4.0], "not lists of ids"),
        ({"embed_tokens": [9, 4], "lm_head": [4, 9]}, "other ids for each module"),
        ({"q_proj": [9, 4]}, "names q_proj, which is no table of tokens"),
        ([9, 9], "allowed different ids"),
        ([9, 10**9], "allowed ids below"),
        ([9], "trainable_tokens_delta is"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, given, message):
    adapted = attach(model(APART), LoRA(rank=1, targets=("q",), tokens=NEW, token_rows=TABLE))
    save_adapter(adapted, tmp_path / "a")
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    config["trainable_token_indices"] = given
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        load_adapter(model(APART), tmp_path / "a")
