"""`events`: what happened to models."""

from __future__ import annotations

from greenthread.clock import SystemClock
from greenthread.kube.errors import Forbidden
from greenthread.kube.resources import EVENTS
from kubectl_greenthread import printing
from kubectl_greenthread.arguments import Usage
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import is_objects, out, print_objects, tell
from kubectl_greenthread.reading import Told, bare_name, events_selector, in_order, told
from kubectl_greenthread.terminal import Cell, Column

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenthread.kube.core import Object
    from kubectl_greenthread.feed import Feed


def events(session: Session, names: tuple[str, ...], watch: bool, reasons: str, warnings: bool) -> None:
    """Show what happened to models, oldest first: wakes with their steps, waits, preemptions, failures."""
    wanted = {bare_name(name) for name in names}
    only = {reason for reason in reasons.split(",") if reason}
    selector = events_selector(min(wanted) if len(wanted) == 1 else "")

    def is_wanted(event: Object) -> bool:
        item = told(event)
        return (
            (not wanted or item.model in wanted)
            and (not only or item.reason in only)
            and (not warnings or item.warning)
        )

    if watch:
        _watch(session, selector, is_wanted)
        return
    try:
        items = session.client.list(EVENTS, session.scope, field_selector=selector).items
    except Forbidden as error:
        raise _may_not(session, error) from None
    found = [item for item in in_order(items) if is_wanted(item)]
    if is_objects(session):
        print_objects(session, [{"apiVersion": "v1", "kind": "Event", **item} for item in found], single=False)
    elif found:
        now = [_cells(session, told(item)) for item in found]
        for line in session.terminal.table(_columns(session), now, session.headers):
            out(line)
    else:
        where = f"namespace {session.scope}" if session.scope else "any namespace"
        of = " or ".join(sorted(wanted)) or "models"
        tell(f"There are no events of {of} in {where}; Kubernetes keeps them an hour.")


def _may_not(session: Session, error: Forbidden) -> Forbidden:
    if session.scope is None:
        message = f"{error} (without -A, those of one namespace may be allowed)"
        return Forbidden(error.status, error.reason, message)
    return error


def _watch(session: Session, selector: str, is_wanted: object) -> None:
    from kubectl_greenthread.feed import Scope
    from kubectl_greenthread.watching import watch_objects, watch_rows

    assert callable(is_wanted)
    scope = Scope(EVENTS, session.scope, field_selector=selector)
    if session.output == "wide":
        raise Usage("-o wide and -w do not go together for events")
    if is_objects(session):
        watch_objects(session, scope, is_wanted)
        return

    def rows(feed: Feed) -> Sequence[tuple[object, list[Cell]]]:
        found = in_order(event for event in feed.objects[scope].values() if is_wanted(event))
        return [(event["metadata"]["name"], _cells(session, told(event))) for event in found]

    watch_rows(session, [scope], _columns(session), rows)


def _columns(session: Session) -> list[Column]:
    columns = [Column("NAMESPACE")] if session.all_namespaces else []
    return [*columns, Column("AGO", right=True), Column("MODEL", flexible=16), Column("EVENT"),
            Column("MESSAGE", flexible=20)]  # fmt: skip


def _cells(session: Session, item: Told) -> list[Cell]:
    cells = [Cell(item.namespace)] if session.all_namespaces else []
    return [
        *cells,
        printing.for_cell(item.at, SystemClock().now()),
        Cell(item.model),
        Cell(item.reason, "failed" if item.warning else ""),
        Cell(item.message),
    ]
