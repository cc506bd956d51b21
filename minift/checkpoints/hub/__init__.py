"""Names of models and data, the cache that programs share, and all of the network."""
