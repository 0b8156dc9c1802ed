"""Backups: what a namespace holds, as it is stored, kept as objects in another place, and brought back from there.

books.py says what a backup is written as, shelf.py where it lies, taking.py takes one, plan.py reads one, recovering.py
puts a store back, pruning.py removes old ones, mending.py brings single records and blobs back.
"""
