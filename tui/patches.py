"""What changed between two versions of an object, as small JSON.

Where both are objects, or lists of one length: an object of what changed, by name or number, null for what is gone.
Everything else is given anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CannotTell(ValueError):
    """The change has no such form; the new version must be given whole."""


def difference(old: Any, new: Any) -> Any:
    """None if they are equal. CannotTell for a new null, and for an object in the place of a list."""
    if old == new:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        changes = {name: None for name in old if name not in new}
        for name, value in new.items():
            before = old.get(name)
            if value is None:
                raise CannotTell
            if before is None:
                changes[name] = value
            elif before != value:
                changes[name] = difference(before, value)
        return changes
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        changes = {}
        for number, (before, value) in enumerate(zip(old, new, strict=True)):
            if value is None:
                raise CannotTell
            if before != value:
                changes[str(number)] = difference(before, value)
        return changes
    if isinstance(old, list) and isinstance(new, dict):
        raise CannotTell
    return new


def apply(old: Any, changes: Any) -> Any:
    """The new version; the old one stays as it is. ValueError, IndexError for changes of another object."""
    if not isinstance(changes, Mapping):
        return changes
    if isinstance(old, dict):
        new = dict(old)
        for name, change in changes.items():
            if change is None:
                new.pop(name, None)
            else:
                new[name] = apply(new.get(name), change)
        return new
    if isinstance(old, list):
        items = list(old)
        for number, change in changes.items():
            items[int(number)] = apply(items[int(number)], change)
        return items
    return changes
