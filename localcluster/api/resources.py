"""What the API knows about each kind of object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import Cause
from .schema import Schema
from .selectors import Field, by_path
from .storage import Object

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`. `read` gives the cell; priority 1 columns show with -o wide only."""

    name: str
    read: Callable[[Object], Any]
    type: str = "string"
    priority: int = 0
    format: str = ""
    description: str = ""


def _nothing(obj: Object, old: Object | None, now: str) -> None:
    return None


def _fine(obj: Object, old: Object | None) -> list[Cause]:
    return []


def _as_is(obj: Object) -> Object:
    return obj


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One resource in one version of its group."""

    group: str
    version: str
    plural: str
    singular: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = VERBS
    storage: str = ""
    """Resources with the same storage are views of the same objects."""
    stored_as: str = ""
    """apiVersion of the stored form; "" if this is it."""
    status: bool = False
    """Has the status subresource: status is written there and nowhere else."""
    status_writes_metadata: bool = False
    subresources: tuple[str, ...] = ()
    schema: Schema | None = None
    raw_schema: dict[str, Any] | None = None
    custom: bool = False
    """Defined by a CRD."""
    counts_generation: bool = True
    columns: tuple[Column, ...] = ()
    fields: Mapping[str, Field] = field(default_factory=dict)
    graceful: bool = False
    """Deletion sets a deletionTimestamp and waits for the one who runs the object (pods)."""
    returns_deleted: bool = False
    unconditional_update: bool = True
    name_rule: Callable[[str], str | None] | None = None
    prepare: Callable[[Object, Object | None, str], None] = _nothing
    """Fills in fields before validation: (object, old or None, now)."""
    check: Callable[[Object, Object | None], list[Cause]] = _fine
    """What the schema cannot say."""
    to_stored: Callable[[Object], Object] = _as_is
    from_stored: Callable[[Object], Object] = _as_is
    deprecation: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        return self.kind + "List"

    def selectable(self) -> Mapping[str, Field]:
        """The fields that a field selector may name."""
        base: dict[str, Field] = {"metadata.name": by_path("metadata.name")}
        if self.namespaced:
            base["metadata.namespace"] = by_path("metadata.namespace")
        return {**base, **self.fields}
