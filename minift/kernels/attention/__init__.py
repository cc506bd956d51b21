"""Softmax attention over grouped heads."""
