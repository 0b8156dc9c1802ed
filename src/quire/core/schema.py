"""Schemas: what the states of one kind of workflow look like, how they merge, and how they came to look like that.

A state says what it is under `$schema`, as in "research/2"; so a fork, an old version and a copy in another store say it
too. What the name means is given to `quire.open`: a program that does not give it reads and writes the state unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from quire.calls import call, in_words, raised
from quire.core.diff import diff
from quire.core.kinds import Kinds
from quire.core.path import describe, parse
from quire.core.path import format as pointer
from quire.core.redact import NOT_KEPT, ByPath
from quire.core.values import copied
from quire.errors import Invalid, InvalidState, MigrationFailed, Unsupported
from quire.model import RUN, Change

KEY = "$schema"
"""Where a state says what it is."""

Migration = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Is given a copy of a state of one version and returns it as of the next, or alters it and returns None."""


class Schema:
    """One kind of state. Give it to `quire.open(schemas=[...])`, and its name to `store.create(schema=...)`.

    name: letters, digits and any of `._-`.  version: 1, 2, 3...; counted up when states have to be migrated.
    model: a msgspec.Struct (or any type msgspec converts to), or a JSON Schema as a dict, which takes the extra
    `quire[jsonschema]`; None for any object. States are checked on the event loop, so a `pattern` in it must not be one that
    Python's `re` takes exponential time for.  kinds: of lists, numbers and texts by JSON Pointer, `*` for any key:
    {"/notes": "log", "/tags": "set", "/agents": "keyed(id)", "/agents/*/done": "counter"}; see core/kinds.py.
    no_history: paths of object keys of which only the present value is kept: what they held before it was replaced whole
    is taken out of the past from time to time (see engine/redaction.py).
    migrations: from a version to the function that leads to the next; there is one for each version but the last.
    Raises Invalid, Unsupported where the extra is missing.

    >>> Schema("research", version=2, kinds={"/notes": "log"}, migrations={1: lambda state: None}).label
    'research/2'
    """

    def __init__(
        self,
        name: str,
        *,
        version: int = 1,
        model: Any = None,
        kinds: Mapping[str, str] | None = None,
        migrations: Mapping[int, Migration] | None = None,
        no_history: Sequence[str] = (),
    ) -> None:
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "._-" for c in name):
            raise Invalid(f"schema name {name!r}: letters, digits and any of . _ - are needed")
        if type(version) is not int or version < 1:
            raise Invalid(f"schema {name}: version {version!r} is not a whole number from 1 on")
        self.name = name
        self.version = version
        self.label = f"{name}/{version}"
        self.kinds = Kinds(kinds or {})
        self.unkept = tuple(ByPath(parse(path), mark=NOT_KEPT) for path in no_history)
        self.migrations = dict(migrations or {})
        missing = set(range(1, version)) ^ set(self.migrations)
        if missing:
            raise Invalid(f"schema {self.label}: migrations are needed from 1 to {version - 1}, not for {min(missing)}")
        self._check = _checker(self.label, model)

    def __repr__(self) -> str:
        return f"<Schema {self.label}>"

    def check(self, state: dict[str, Any]) -> None:
        """Raise InvalidState naming the place, where a state does not fit. What Quire keeps in it (`$schema`, `_run`) does not count.

        Cost: O(state), about that of encoding it.
        """
        if self._check is not None:
            self._check(own(state))


class Step(NamedTuple):
    """A migration that a state needs next. before, after: labels."""

    before: str
    after: str
    migration: Migration

    def changes(self, where: str, state: dict[str, Any]) -> list[Change]:
        """Return what the migration changes, the label included; none where the state is no longer of that version.

        Raises MigrationFailed where its code raises, or its result is no state.
        """
        if state.get(KEY) != self.before:
            return []
        given = cast("dict[str, Any]", copied(state))
        try:
            result = call(self.migration, given)
            result = given if result is None else result
            if not isinstance(result, dict):
                raise InvalidState(f"it returned {describe(result)}, not an object")
            return diff(state, {**result, KEY: self.after})
        except Exception as cause:  # noqa: BLE001 - of the caller's code: it is the cause
            raise MigrationFailed(where, self.before, self.after, in_words(cause)) from raised(cause)


class Schemas:
    """The schemas that a program knows, by name."""

    def __init__(self, schemas: Iterable[Schema] = ()) -> None:
        self._known: dict[str, Schema] = {}
        for schema in schemas:
            if not isinstance(schema, Schema):
                raise Invalid(f"schemas are made with quire.Schema(...), not {type(schema).__name__}")
            if schema.name in self._known:
                raise Invalid(f"two schemas are called {schema.name}; give the newest version only")
            self._known[schema.name] = schema

    def __bool__(self) -> bool:
        return bool(self._known)

    def named(self, name: str) -> Schema:
        """Return a schema. Raises Invalid."""
        if name not in self._known:
            there = ", ".join(sorted(self._known)) or "none"
            raise Invalid(f"no schema {name!r} was given to quire.open(schemas=...); known: {there}")
        return self._known[name]

    def of(self, state: dict[str, Any]) -> tuple[Schema, int] | None:
        """Return the schema that a state claims, and which version of it; None for one that is not known here."""
        label = state.get(KEY) if self._known else None
        if type(label) is not str:
            return None
        name, _, version = label.rpartition("/")
        schema = self._known.get(name)
        if schema is None or not version.isascii() or not version.isdigit():
            return None
        return schema, int(version)

    def kinds(self, state: dict[str, Any]) -> Kinds | None:
        """Return what was declared of a state's lists, numbers and texts."""
        found = self.of(state)
        return None if found is None else found[0].kinds

    def unkept(self, state: dict[str, Any]) -> tuple[ByPath, ...]:
        """Return what no history is kept of."""
        found = self.of(state)
        return () if found is None else found[0].unkept

    def check(self, where: str, state: dict[str, Any]) -> None:
        """Raise InvalidState for a state that may not be written. One of an older version may: it is migrated later."""
        found = self.of(state)
        if found is None:
            return
        schema, version = found
        if version > schema.version:
            raise InvalidState(
                f"{where}: the state is of {schema.name}/{version}, this program knows {schema.label}; nothing was "
                "written: run the newer program, or restore a version from before the migration",
                path=f"/{KEY}",
            )
        if version == schema.version:
            try:
                schema.check(state)
            except InvalidState as error:
                raise InvalidState(f"{where}: {error}", path=error.path) from error

    def step(self, state: dict[str, Any]) -> Step | None:
        """Return the migration that a state needs next, None for none."""
        found = self.of(state)
        if found is None or not 1 <= found[1] < found[0].version:
            return None
        schema, version = found
        return Step(f"{schema.name}/{version}", f"{schema.name}/{version + 1}", schema.migrations[version])


def own(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without the keys that Quire keeps in it: `$schema`, and the books of a run."""
    return {k: v for k, v in state.items() if k not in (KEY, RUN)}


def typed(state: Mapping[str, Any], model: Any, where: str) -> Any:
    """Return a state as a type. Raises InvalidState naming the place."""
    try:
        return call(msgspec.convert, own(state), model)
    except msgspec.ValidationError as cause:
        raise _unfit(where, str(cause)) from cause


def _checker(label: str, model: Any) -> Callable[[dict[str, Any]], None] | None:
    if model is None:
        return None
    if isinstance(model, Mapping):
        return _json_schema(label, dict(cast("Mapping[str, Any]", model)))
    try:
        msgspec.convert({}, model)
    except msgspec.ValidationError:
        pass
    except TypeError as cause:
        raise Invalid(f"schema {label}: {cause}") from cause
    return lambda state: typed(state, model, label) and None


def _json_schema(label: str, model: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    try:
        import jsonschema_rs
    except ImportError as cause:
        raise Unsupported(
            f"schema {label}: a JSON Schema takes `pip install 'quire[jsonschema]'`", capability="jsonschema"
        ) from cause
    try:
        # offline: what it refers to is in it; a schema must not make this process ask the network
        validator = jsonschema_rs.validator_for(model, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as cause:
        raise Invalid(f"schema {label} is no JSON Schema: {cause.args[0]}") from cause

    def check(state: dict[str, Any]) -> None:
        for error in validator.iter_errors(state):
            at = pointer(tuple(error.instance_path))
            raise InvalidState(f"{at or 'the state'} does not fit {label}: {error.message}", path=at)

    return check


def _unfit(where: str, said: str) -> InvalidState:
    """Turn what msgspec says, as in "Expected `int`, got `str` - at `$.notes[0]`", into our words and a pointer."""
    what, _, place = said.partition(" - at `$")
    at = "".join(
        "/" + token.strip("'\"").replace("~", "~0").replace("/", "~1")
        for token in place.rstrip("`").replace("[...]", ".*").replace("[", ".").replace("]", "").split(".")
        if token
    )
    return InvalidState(f"{at or 'the state'} does not fit {where}: {what}", path=at)
