"""Storage persists: one protocol (base.py), one small file for each backend, chosen only by open.py."""
