"""Data sets: reading, looking at, cleaning, splitting and batching them."""
