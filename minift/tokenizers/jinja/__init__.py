"""The part of Jinja that published chat templates use, as a small bounded interpreter.

Read `tokens.py` (text to signs), `tree.py` and `parse.py` (signs to a tree), `render.py` (the tree
to text), with `values.py` and `filters.py` for what its expressions do, and `traced.py` for whose
each character is.
"""
