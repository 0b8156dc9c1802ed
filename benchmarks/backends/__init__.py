"""Each backend beside the limit of its own driver, in the same run: `python -m benchmarks.backends.NAME`."""
