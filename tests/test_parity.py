"""The sync facade says the same words as the async API."""

import inspect

import pytest

from quire import scopes, sync
from quire.api import store, workflow


def public(cls):
    return {n: m for n, m in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_")}


TWINS = [
    (sync.Store, store.Store),
    (sync.Workflow, workflow.Workflow),
    (sync.State, scopes.State),
    (sync.WorkflowStateManager, scopes.WorkflowStateManager),
]


@pytest.mark.parametrize(("ours", "theirs"), TWINS)
def test_same_methods_same_parameters_same_docs(ours, theirs):
    internal = {"snapshot", "rebase"}
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
