"""`:` commands: which there are, what they take, how one is completed and read. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tui.pages import PAGES


class Unclear(Exception):
    """A command that cannot be run; `str()` says why and what to type instead."""


@dataclass(frozen=True)
class Command:
    """`takes`: the kinds of its arguments, for completion; `least`: how many of them it needs."""

    name: str
    takes: tuple[str, ...]
    what: str
    least: int = 0

    @property
    def usage(self) -> str:
        words = [kind.upper() if at < self.least else f"[{kind.upper()}]" for at, kind in enumerate(self.takes)]
        return " ".join([self.name, *words])


_VERBS = (
    Command("wake", ("model",), "wake a model", 1),
    Command("sleep", ("model",), "put a model to sleep", 1),
    Command("pin", ("model",), "never preempt a model", 1),
    Command("unpin", ("model",), "let a model give way again", 1),
    Command("preempt", ("model",), "make a model give way", 1),
)
_OTHERS = (
    Command("model", ("model",), "all of one model", 1),
    Command("gpu", ("gpu",), "all of one GPU", 1),
    Command("chat", ("model",), "talk to a model"),
    Command("logs", ("model", "container"), "what an engine or sidecar writes"),
    Command("yaml", ("object",), "a Model or GPU as the API has it"),
    Command("ns", ("namespace",), "models of one namespace, or of all", 1),
    Command("theme", ("theme",), "other colours", 1),
    Command("filter", ("words",), "rows with these words; nothing: all rows"),
    Command("help", (), "the keys of this page"),
    Command("quit", (), "leave"),
)
CONTAINERS = ("engine", "sidecar")
ALIASES = {"q": "quit", "q!": "quit", "namespace": "ns", "describe": "model", "log": "logs", "gt": "overview",
           "model": "model", "ev": "events", "h": "help"}  # fmt: skip


def commands(acts: bool) -> dict[str, Command]:
    """By name; without `acts` those that change nothing."""
    pages = (Command(entry.name, (), entry.what) for entry in PAGES.values())
    return {command.name: command for command in (*pages, *_OTHERS[:5], *(_VERBS if acts else ()), *_OTHERS[5:])}


def complete(text: str, acts: bool, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Whole lines that `text` may become; `names`: what there is of each kind."""
    name, *given = text.lstrip().split(" ")
    known = commands(acts)
    if not given:
        return [command for command in known if command.startswith(name) and command != name] + (
            [f"{name} "] if name in known and known[name].takes and names.get(known[name].takes[0]) else []
        )
    command = known.get(ALIASES.get(name, name))
    if command is None or len(given) > len(command.takes):
        return []
    *before, last = given
    found = [item for item in names.get(command.takes[len(given) - 1], ()) if last in item and item != last]
    found.sort(key=lambda item: (not item.startswith(last), not item.rpartition("/")[2].startswith(last)))
    return [" ".join([name, *before, item]) for item in found]


def read(text: str, acts: bool) -> tuple[str, list[str]]:
    """Name and arguments of a command; a beginning that only one command has is enough. Raises Unclear."""
    name, *given = text.split()
    known = commands(acts)
    name = ALIASES.get(name, name)
    if name not in known:
        begun = [command for command in known if command.startswith(name)]
        if len(begun) > 1:
            raise Unclear(f"{name} may be {', '.join(begun)}")
        if not begun:
            if not acts and name in {command.name for command in _VERBS}:
                raise Unclear(f"{name} changes a model, and this dashboard is read-only")
            near = difflib.get_close_matches(name, known, n=1)
            raise Unclear(f"there is no command {name}" + (f": did you mean {near[0]}?" if near else ": ? shows them"))
        name = begun[0]
    command = known[name]
    if len(given) < command.least or (len(given) > len(command.takes) and command.takes != ("words",)):
        raise Unclear(f"type it as {command.usage}")
    return name, given


def pick(kind: str, wanted: str, names: Sequence[str]) -> str:
    """The one of `names` that is meant: itself, the only `namespace/NAME`, or the only one with it. Raises Unclear."""
    if wanted in names:
        return wanted
    for found in (
        [name for name in names if name.rpartition("/")[2] == wanted],
        [name for name in names if wanted in name],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise Unclear(f"{wanted} may be {', '.join(found[:5])}")
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    raise Unclear(f"there is no {kind} {wanted}" + (f": did you mean {near[0]}?" if near else ""))
