"""The `quire` command: a thin face of the public API.

Scripts and agents call it in loops, so a call imports the one command it runs and nothing else.
"""
