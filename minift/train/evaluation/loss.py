"""The loss on held-out rows: what decides which step of a run is the best."""

from __future__ import annotations

import torch

from minift.model.transformer import Transformer
from minift.train.objectives.protocol import Objective


@torch.no_grad()
def held_out_loss(model: Transformer, objective: Objective, max_tokens: int) -> float | None:
    """The mean loss a target, in nats; None where no row is held out. `max_tokens`: of a batch."""
    was = model.training
    model.eval()
    total, num_targets = 0.0, 0
    try:
        for batch in objective.held_out_batches(max_tokens):
            total += float(objective.loss_sum(model, batch))
            num_targets += batch.num_targets
    finally:
        model.train(was)
    return total / num_targets if num_targets else None
