"""Wrappers: a backend around any backend, that changes what is stored and keeps every promise of the protocol."""
