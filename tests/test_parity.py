"""The sync facade says the same words as the async API."""

import inspect

import pytest

from quire import backends, central, events, scopes, sync
from quire.api import store, workflow
from quire.events import delivery
from quire.events.sync import Subscription


def public(cls):
    return {n: m for n, m in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_")}


TWINS = [
    (sync.Store, store.Store, set()),
    (sync.Workflow, workflow.Workflow, {"snapshot", "rebase", "read_base"}),
    (sync.State, scopes.State, set()),
    (sync.WorkflowStateManager, scopes.WorkflowStateManager, set()),
    (sync.CentralizedStateStore, central.AsyncCentralizedStateStore, {"start"}),
    (sync.StorageBackend, backends.StorageBackend, {"start"}),
    (sync.EventStore, events.AsyncEventStore, {"start", "fold", "drafted"}),
    (sync.StateView, events.AsyncStateView, set()),
    (Subscription, delivery.Subscription, {"start", "reach"}),
]
"""What threads use, its async twin, and what only the twin has: to open it, or for the inside."""


@pytest.mark.parametrize(("ours", "theirs", "internal"), TWINS, ids=lambda value: getattr(value, "__name__", ""))
def test_same_methods_same_parameters_same_docs(ours, theirs, internal):
    assert set(public(ours)) == set(public(theirs)) - internal
    for name, method in public(ours).items():
        twin = public(theirs)[name]
        assert list(inspect.signature(method).parameters.values()) == list(
            inspect.signature(twin).parameters.values()
        ), name
        assert method.__doc__ == twin.__doc__, name


def test_open_is_the_same():
    assert inspect.signature(sync.open).parameters == inspect.signature(store.open).parameters
    assert sync.open.__doc__ == store.open.__doc__


@pytest.mark.parametrize("name", ["FileStorageBackend", "RedisStorageBackend", "DatabaseStorageBackend"])
def test_backends_take_the_same_arguments(name):
    ours, theirs = getattr(sync, name), getattr(backends, name)
    assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters
    assert set(public(ours)) == set(public(theirs)) - {"start"}
