"""`gpus`: each GPU's memory, who is on it and who waits for it."""

from __future__ import annotations

from greenthread.clock import SystemClock
from greenthread.kube.errors import NotFound
from greenthread.kube.resources import GPUS
from greenthread.snapshot import Builder, GpuRow, Snapshot, build
from greenthread.units import short_bytes, short_duration
from kubectl_greenthread import printing
from kubectl_greenthread.failures import NoSuchModel
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import is_objects, out, print_objects, sorted_by, tell
from kubectl_greenthread.reading import bare_name, list_gpus
from kubectl_greenthread.terminal import Cell, Column

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenthread.kube.core import Object
    from kubectl_greenthread.feed import Feed


def gpus(session: Session, names: tuple[str, ...], watch: bool) -> None:
    """List GPUs: memory used, free and foreign, load, who is on them and who waits.

    A GPU is named NODE-INDEX, as `kubectl get gpus -A` has it, or NODE/INDEX.
    """
    wanted = {bare_name(name) if name.lower().startswith("gpu") else name.replace("/", "-") for name in names}
    if watch:
        _watch(session, wanted)
        return
    missing: list[str] = []
    found = _read(session, missing)
    if unknown := wanted - {obj["metadata"]["name"] for obj in found}:
        have = ", ".join(sorted(obj["metadata"]["name"] for obj in found)[:10]) or "none"
        raise NoSuchModel(f"there is no GPU {min(unknown)}; there is {have}")
    chosen = sorted_by(session, [obj for obj in found if not wanted or obj["metadata"]["name"] in wanted])
    if is_objects(session):
        shown = [{"apiVersion": GPUS.api_version, "kind": GPUS.kind, **obj} for obj in chosen]
        print_objects(session, shown, single=len(names) == 1)
    elif chosen:
        snapshot = build((), chosen, (), SystemClock().now())
        by_name = {row.gpu.name: row for row in snapshot.gpus}
        order = [obj["metadata"]["name"] for obj in chosen] if session.sort_by else list(by_name)
        rows = [_cells(session, by_name[name], snapshot) for name in order if name in by_name]
        for line in session.terminal.table(_columns(session), rows, session.headers):
            out(line)
    elif not missing:
        tell("There are no GPUs: the node agent registers them, see that it runs on your GPU nodes.")
    printing.warn(session, missing)


def _read(session: Session, missing: list[str]) -> Sequence[Object]:
    if not (session.selector or session.field_selector):
        return list_gpus(session, missing)[0]
    try:
        return session.client.list(GPUS, None, session.selector, session.field_selector).items
    except NotFound:
        return ()


def _watch(session: Session, wanted: set[str]) -> None:
    from kubectl_greenthread.feed import Scope
    from kubectl_greenthread.watching import watch_objects, watch_rows

    scope = Scope(GPUS, list_gpus(session, [])[1], session.selector, session.field_selector)
    if is_objects(session):
        watch_objects(session, scope, lambda obj: not wanted or obj["metadata"]["name"] in wanted)
        return
    builder = Builder()

    def rows(feed: Feed) -> list[tuple[object, list[Cell]]]:
        found = [obj for key, obj in feed.objects[scope].items() if not wanted or key[1] in wanted]
        snapshot = builder.build((), found, (), SystemClock().now())
        return [(row.gpu.name, _cells(session, row, snapshot)) for row in snapshot.gpus]

    watch_rows(session, [scope], _columns(session), rows)


def _columns(session: Session) -> list[Column]:
    columns = [
        Column("GPU"),
        Column("USED", right=True),
        Column("FREE", right=True),
        Column("TOTAL", right=True),
        Column("FOREIGN", right=True, drop=3),
        Column("UTIL", right=True, drop=4),
        Column("TEMP", right=True, drop=2),
        Column("POWER", right=True, drop=1),
        Column("OCCUPANTS", flexible=16),
        Column("WAITING", flexible=12),
    ]
    return [*columns, Column("PRODUCT", drop=5), Column("UUID", drop=5)] if session.output == "wide" else columns


def _cells(session: Session, row: GpuRow, snapshot: Snapshot) -> list[Cell]:
    gpu, stats = row.gpu, row.gpu.stats
    awake = sorted((o for o in gpu.occupants if o.reserved), key=lambda o: -o.reserved)
    asleep = len(gpu.occupants) - len(awake)
    names = [f"{session.terminal.glyph(str(o.state))} {o.model} {short_bytes(o.reserved)}" for o in awake]
    if asleep:
        names.append(f"{session.terminal.glyph('sleeping')} {asleep} asleep")
    waiting = [f"{i.model} {short_duration((snapshot.at - i.since).total_seconds())}" for i in row.waiting]
    cells = [
        Cell(f"{gpu.node}/{gpu.index}"),
        Cell(short_bytes(gpu.reserved + gpu.foreign)),
        Cell(short_bytes(row.free)),
        Cell(short_bytes(gpu.total)),
        Cell(short_bytes(gpu.foreign) if gpu.foreign else "0", "" if gpu.foreign else "dim"),
        Cell(f"{stats.utilization}%" if stats else "-"),
        Cell(f"{stats.temperature}C" if stats else "-"),
        Cell(f"{stats.power}W" if stats else "-"),
        Cell(", ".join(names) or "-"),
        Cell(", ".join(waiting) or "-", "pending" if waiting else "dim"),
    ]
    return [*cells, Cell(gpu.product or "-"), Cell(gpu.uuid or "-")] if session.output == "wide" else cells
