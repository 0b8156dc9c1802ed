"""The core computes: pure functions on JSON states and their changes. No I/O, clock, randomness, threads, await."""
