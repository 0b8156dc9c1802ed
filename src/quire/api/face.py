"""Faces: classes that show a store in the words of another document. What they have in common.

A face stands on a store that it opens, and then closes, or that it was lent, and then leaves open. It holds nothing
that it could lose. Each comes twice, with the same words: `AsyncFace` for the event loop, `Face` for threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from quire.api import sync
from quire.api.store import Store
from quire.api.store import open as open_store
from quire.errors import Closed, Invalid

T = TypeVar("T")


class AsyncFace:
    """On a Store, or the URL of one, which `async with` or `start` opens."""

    def __init__(self, storage: Store | str, namespace: str) -> None:
        if not isinstance(storage, Store | str):
            raise Invalid(f"storage is {type(storage).__name__}; give a URL, or what `quire.open` opened")
        self._storage = storage
        self._namespace = namespace
        self._store: Store | None = None

    async def __aenter__(self) -> Self:
        """Open."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def start(self) -> None:
        """Open the store, if a URL was given. Idempotent."""
        if self._store is not None:
            return
        storage = self._storage
        store = await open_store(storage, namespace=self._namespace) if isinstance(storage, str) else storage
        try:
            await self._begin(store)
        except BaseException:
            if store is not storage:
                await store.close()
            raise
        self._store = store

    async def close(self) -> None:
        """Close the store if it was opened here. Idempotent."""
        store, self._store = self._store, None
        if store is not None and store is not self._storage:
            await store.close()

    @property
    def store(self) -> Store:
        """The store underneath, for everything this face does not show. Raises Closed."""
        if self._store is None:
            raise Closed(f"{type(self).__name__} is not open: `async with` it, or `await` its `start()`")
        return self._store

    async def _begin(self, store: Store) -> None:
        """Prepare what the face needs of a store that was just opened."""


A = TypeVar("A", bound=AsyncFace)


class Face(Generic[A]):
    """The twin of an AsyncFace on a `quire.sync` store, or the URL of one. Safe from any thread."""

    def __init__(self, storage: sync.Store | str, namespace: str, face_on: Callable[[Store], A]) -> None:
        """face_on: makes the async twin, on the store as the event loop knows it."""
        if not isinstance(storage, sync.Store | str):
            raise Invalid(f"storage is {type(storage).__name__}; give a URL, or what `quire.sync.open` opened")
        self._lent = isinstance(storage, sync.Store)
        self.store = sync.open(storage, namespace=namespace) if isinstance(storage, str) else storage
        self.loop = self.store._loop  # pyright: ignore[reportPrivateUsage] - where the store lives, its faces live
        try:
            self.twin = face_on(self.store._store)  # pyright: ignore[reportPrivateUsage]
            self.loop.run(self.twin.start())
        except BaseException:
            if not self._lent:
                self.store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store if it was opened here. Idempotent."""
        with suppress(Closed):  # the store was closed before
            self.loop.run(self.twin.close())
        if not self._lent:
            self.store.close()


def twin_of(theirs: type[Any]) -> Callable[[type[T]], type[T]]:
    """Give each method the docstring of its async twin: written once, the same in both."""

    def documented(ours: type[T]) -> type[T]:
        for name, method in vars(ours).items():
            twin = getattr(theirs, name, None)
            if not name.startswith("_") and callable(method) and twin is not None:
                method.__doc__ = twin.__doc__
        return ours

    return documented
