"""Where the `quire` script enters: the group with all its commands."""

from __future__ import annotations

from quire.cli import commands
from quire.cli.base import main

__all__ = ["commands", "main"]

if __name__ == "__main__":
    main()
