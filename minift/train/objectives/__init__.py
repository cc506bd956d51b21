"""Objectives: each owns its data, how rows become tensors, and its loss sum."""
