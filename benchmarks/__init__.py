"""Measurements, as ratios to a limit or a peer run in the same command. `python -m benchmarks`."""
