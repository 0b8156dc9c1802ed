"""The `quire` command: a thin face of the public API. It imports late, being called in loops."""
