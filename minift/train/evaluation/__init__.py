"""Evaluation: the loss on held-out rows, and how often the right label scores highest."""
