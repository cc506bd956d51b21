"""The planned time of training, by hand."""

from __future__ import annotations

import pytest

from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.runtime import Rates
from minift.study import plan


def test_the_plan_by_hand(monkeypatch):
    """Two layers of seven linears: 18,432 weights, 1,024 numbers read or written for a token."""
    model = Transformer(ModelConfig("llama", 61, 32, 2, 4, 2, 8, 64, 64))
    monkeypatch.setattr(plan, "rates", lambda threads: Rates(457.0, 914.0))
    between = 14 * 0.7e-3 + 100 * 1024 * 1.5e-9
    products = 4 * 18_432 * 100 / 457e9
    assert plan.training_seconds(model, 10, 100) == pytest.approx(10 * (between + products))
    half = plan.training_seconds(model.bfloat16(), 10, 100)
    assert half == pytest.approx(10 * (between + products / 2))
    monkeypatch.setattr(plan, "rates", lambda threads: Rates(228.5, 457.0))
    assert plan.training_seconds(model, 10, 100) == pytest.approx(2 * half)
    assert plan.training_seconds(model.to("meta"), 10, 100) is None
