"""The head and the loss together."""
