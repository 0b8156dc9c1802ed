"""Wrappers: a backend around any backend, that changes what is stored and keeps every promise of the protocol.

Each keeps what it must remember of a namespace in a cell of the backend within; storage/open.py looks for these cells.
"""

KEYRING = "quire:keyring"
"""There where a namespace is encrypted: see encrypted.py."""
BOOK = "quire:compression"
"""There where a namespace is compressed: see compressed.py."""
ARCHIVE = "quire:archive"
"""There where old versions went to an archive: see archived.py."""
