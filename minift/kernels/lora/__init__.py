"""A frozen linear layer with a low-rank change."""
