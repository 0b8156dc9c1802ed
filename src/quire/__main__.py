"""The command line, as `python -m quire`."""

from quire.cli.main import main

main(prog_name="quire")
