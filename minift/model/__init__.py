"""The one transformer: its configuration, its rotary positions, its forward pass."""
