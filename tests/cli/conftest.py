"""The command line, called in an empty folder."""

import pytest
from click.testing import CliRunner

from quire.cli.main import main


@pytest.fixture
def quire(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUIRE_STORE", raising=False)

    def call(*args, input=None, code=0):
        done = CliRunner().invoke(main, list(args), input=input)
        assert done.exit_code == code, (done.output, done.stderr, done.exception)
        assert "Traceback" not in done.output
        return done.stdout

    return call
