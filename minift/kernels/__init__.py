"""One folder per operation: reference.py is the readable twin that every fast path is held to."""
