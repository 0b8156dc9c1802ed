"""The `quire` command: a thin face of the public API. Nothing is imported before it is needed: it is called in loops."""
