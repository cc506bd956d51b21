"""Checkpoint files: their formats, the model families they hold, and where to get them."""
