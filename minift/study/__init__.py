"""Looking at models: what was loaded, and where two of them part."""
