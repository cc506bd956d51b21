"""Heads: which position is read, by hand; the rest is in the goldens of test_families.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.model import transformer
from minift.model.config import ModelConfig
from minift.model.heads import LabelHead

FAMILIES = Path(__file__).parents[1] / "golden" / "families"
LABELS = ModelConfig("llama", 8, 4, 1, 2, 2, 2, 8, 16, head="label", labels=("reward",))


@pytest.mark.parametrize(
    ("mask", "last", "expected"),
    [
        (None, True, [2, 2]),
        (None, False, [0, 0]),
        ([[1, 1, 0], [1, 0, 0]], True, [1, 0]),
        ([[0, 1, 1], [0, 0, 1]], False, [1, 2]),
        ([[0, 0, 0], [1, 1, 1]], True, [0, 2]),  # a row without a token: no matter
    ],
)
def test_the_first_or_last_real_position(mask, last, expected):
    head = LabelHead(replace(LABELS, pool="last" if last else "first"))
    mask = None if mask is None else torch.tensor(mask).bool()
    indices = head.select(mask, 2, 3, torch.device("cpu"))
    assert indices.tolist() == [3 * row + at for row, at in enumerate(expected)]


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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name", ["bert_labels", "roberta_labels", "distilbert_labels", "gpt2_labels", "llama_labels"]
)
def test_only_the_position_that_is_read_goes_through_the_last_block(name, side, monkeypatch):
    model = load_model(FAMILIES / name, dtype=torch.float64)
    tokens = torch.arange(2 * 6).view(2, 6) * 7 % model.config.vocab
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    mask = mask.flip(1) if side == "left" else mask
    found, widths = [], []
    model.blocks[-1].mlp.out.register_forward_pre_hook(
        lambda module, inputs: widths.append(inputs[0].shape[:-1].numel())
    )
    for share in (0.0, 1.0):
        monkeypatch.setattr(transformer, "FEW", share)
        scores = model(tokens, mask=mask)
        parameters = list(model.parameters())
        grads = torch.autograd.grad(scores.sin().sum(), parameters, allow_unused=True)
        found.append((scores, [torch.zeros(1) if g is None else g for g in grads]))
    assert widths == [12, 2]
    (scores, grads), (short, others) = found
    torch.testing.assert_close(short, scores, rtol=0, atol=1e-12)
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_one_output_is_a_scalar_head():
    head = LabelHead(LABELS)
    assert head(torch.ones(3, 4), None).shape == (3, 1)
    assert head.out.bias is None


def test_a_model_without_a_language_head_says_so():
    model = load_model(FAMILIES / "bert_body")
    with pytest.raises(ConfigError, match="no language head"):
        model.logits(torch.zeros(1, 21))
