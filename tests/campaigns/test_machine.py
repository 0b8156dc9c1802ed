"""Edits held open at once through several handles, in whatever order Hypothesis finds."""

import pytest
from hypothesis import settings

import quire
from quire.testing.edits.campaign import Campaign
from quire.testing.edits.machine import MACHINE, EditMachine

pytestmark = pytest.mark.soak


class OnSqlite(EditMachine):
    """Two handles of one file."""

    campaign = Campaign(url="", seed="", handles=2, clients=1)

    async def open(self):
        return await quire.open(f"sqlite:///{self.place}/edits.db", on_conflict=self.policy)


TestOnSqlite = OnSqlite.TestCase
TestOnSqlite.settings = MACHINE


@pytest.mark.soak
class TestOnSqliteForLong(OnSqlite.TestCase):
    settings = settings(MACHINE, max_examples=2000, stateful_step_count=50)
