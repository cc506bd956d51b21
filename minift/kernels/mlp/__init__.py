"""A gated or plain MLP block."""
