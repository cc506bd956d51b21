"""Frozen linears that will be multiplied by few rows, many times."""
