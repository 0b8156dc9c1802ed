"""The engine remembers: it keeps live states, batches writes into commits, and tells watchers.

It knows only the storage protocol. One `Engine` per open store and event loop.
"""
