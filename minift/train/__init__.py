"""Training: one loop, and the objectives that own their data and their loss."""
