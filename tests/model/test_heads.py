"""Heads: which position is read, by hand; the rest is in the goldens of test_families.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.model.config import ModelConfig
from minift.model.heads import LabelHead, pooled

FAMILIES = Path(__file__).parents[1] / "golden" / "families"
HIDDEN = torch.arange(12.0).view(2, 3, 2)


@pytest.mark.parametrize(
    ("mask", "last", "expected"),
    [
        (None, True, [[4, 5], [10, 11]]),
        (None, False, [[0, 1], [6, 7]]),
        ([[1, 1, 0], [1, 0, 0]], True, [[2, 3], [6, 7]]),
        ([[0, 1, 1], [0, 0, 1]], False, [[2, 3], [10, 11]]),
        ([[0, 0, 0], [1, 1, 1]], True, [[0, 1], [10, 11]]),  # a row without a token: no matter
    ],
)
def test_the_first_or_last_real_position(mask, last, expected):
    mask = None if mask is None else torch.tensor(mask).bool()
    assert pooled(HIDDEN, mask, last=last).tolist() == expected


@pytest.mark.parametrize("name", ["bert_labels", "roberta_labels", "distilbert_labels"])
def test_an_encoder_padded_on_the_left_equals_one_padded_on_the_right(name):
    data = np.load(FAMILIES / name / "golden.npz")
    model = load_model(FAMILIES / name)
    tokens, mask = (torch.from_numpy(data[f"right.{key}"]) for key in ("tokens", "mask"))
    turned = [torch.stack([r.roll(int((m == 0).sum())) for r, m in zip(x, mask, strict=True)])
              for x in (tokens, mask)]  # fmt: skip
    given = {}
    if "right.types" in data:
        types = torch.from_numpy(data["right.types"])
        given = {"token_types": torch.stack(
            [r.roll(int((m == 0).sum())) for r, m in zip(types, mask, strict=True)]
        )}  # fmt: skip
    with torch.no_grad():
        scores = model(turned[0], mask=turned[1].bool(), **given)
    torch.testing.assert_close(scores, torch.from_numpy(data["right.out"]), rtol=1e-5, atol=1e-5)


def test_one_output_is_a_scalar_head():
    config = ModelConfig("llama", 8, 4, 1, 2, 2, 2, 8, 16, head="label", labels=("reward",))
    head = LabelHead(config)
    assert head(torch.ones(3, 5, 4), None, None).shape == (3, 1)
    assert head.out.bias is None


def test_a_model_without_a_language_head_says_so():
    model = load_model(FAMILIES / "bert_body")
    with pytest.raises(ConfigError, match="no language head"):
        model.logits(torch.zeros(1, 21))
