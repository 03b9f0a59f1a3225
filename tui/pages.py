"""Which pages there are. One entry adds one: it is a `:` command, a stop of `tab`, and a line of the help."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tui.page import Page


class Entry(NamedTuple):
    """`key`: opens it from anywhere, "" for none; `place`: `module:class`, a `Page` made without arguments."""

    name: str
    key: str
    place: str
    what: str

    def make(self) -> Page:
        """The page; its module is imported when it is first opened."""
        from tui.page import Page

        module, _, name = self.place.partition(":")
        page = getattr(importlib.import_module(module), name)()
        assert isinstance(page, Page)
        page.identity = (self.name,)
        return page


PAGES = {
    entry.name: entry
    for entry in (
        Entry("overview", "o", "tui.overview:Overview", "who is on the GPUs, who waits, and why"),
        Entry("waits", "", "tui.waits:Waits", "who waits for what, behind whom, and what comes next"),
        Entry("models", "m", "tui.models:Models", "every model, sorted as you like"),
        Entry("gpus", "u", "tui.gpus:Gpus", "every GPU by node: who holds it, who waits for it"),
        Entry("charts", "v", "tui.charts:Charts", "wake latency, requests, queue, preemptions, GPU use and memory"),
        Entry("events", "e", "tui.events:Events", "what happened, newest first"),
    )
}
"""By name, in the order of `tab`."""
FIRST = "overview"
