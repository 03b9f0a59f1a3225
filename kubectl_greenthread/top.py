"""`top`: who is on the GPUs, who waits, and why."""

from __future__ import annotations

from collections.abc import Callable

from greenthread.clock import SystemClock
from greenthread.gpu import Occupant, State
from greenthread.kube.resources import GPUS, MODELS, PODS
from greenthread.outlook import why
from greenthread.snapshot import Builder, GpuRow, ModelRow, Shown, Snapshot
from greenthread.units import GIB, short_bytes, short_duration
from kubectl_greenthread import printing
from kubectl_greenthread.arguments import Usage
from kubectl_greenthread.measured import EVERY, Measured
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import is_objects, out, print_data, print_objects, tell
from kubectl_greenthread.reading import MODEL_PODS, bare_name, list_gpus, read_all
from kubectl_greenthread.terminal import Cell, Column

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from greenthread.prometheus import ModelNumbers
    from kubectl_greenthread.measured import Numbers

BAR_WIDTHS = (10, 42)
"""Cells of a memory bar, at least and at most; 30 where the width is not known."""
TREND = 12
"""Cells of a model's requests over time."""
WAITING_SHOWN = 5
"""Waiting models that are explained under the table."""


SORT_KEYS: dict[str, Callable[[ModelRow], Any]] = {
    "name": lambda row: (row.namespace, row.name),
    "namespace": lambda row: (row.namespace, row.name),
    "state": lambda row: list(Shown).index(row.state),
    "for": lambda row: -(row.since.timestamp() if row.since else 0.0),
    "gpu": lambda row: row.places,
    "vram": lambda row: -row.vram,
    "in-flight": lambda row: -(row.in_flight or 0),
    "queue": lambda row: -(row.queued or 0),
    "last-wake": lambda row: -(row.last_wake or 0.0),
}
"""What the columns of `--sort-by` mean."""


def top(session: Session, names: tuple[str, ...], watch: bool, prometheus: str) -> None:
    """Show each GPU's memory with who holds it, and each model with its state and why the waiting wait.

    In a narrow terminal columns go in this order: those of Prometheus, FLAGS, LAST WAKE, IN-FLIGHT, QUEUE; TEMP, UTIL.
    A Prometheus that is found adds requests per second, wakes of the last hour, and requests of the last 10 minutes.

    With -w on a terminal the picture stays and follows the cluster; elsewhere every changed model is a new line.
    """
    if watch:
        _watch(session, names, prometheus)
        return
    measured = Measured(session, prometheus) if session.output != "name" else None
    view = read_all(session, names)
    numbers = measured.wait() if measured is not None else None
    snapshot = _sorted(session, view.snapshot, numbers)
    if session.output == "name":
        print_objects(session, view.models)
    elif is_objects(session):
        data = {
            "gpus": [printing.gpu_data(row) for row in snapshot.gpus],
            "models": [printing.model_data(row, snapshot) | _measured_data(row, numbers) for row in snapshot.models],
        }
        print_data(session, data)
    else:
        text = picture(session, snapshot, numbers)
        if text:
            out(text)
        _say_what_is_empty(session, snapshot)
    printing.warn(session, [*view.missing, *(measured.warnings if measured is not None else ())])


def picture(session: Session, snapshot: Snapshot, numbers: Numbers | None = None) -> str:
    """GPUs, models, and why the waiting wait; `numbers`: of Prometheus, if there is one."""
    models = model_lines(session, snapshot, numbers)
    sections = [gpu_lines(session, snapshot), models, waiting_lines(session, snapshot)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _sorted(session: Session, snapshot: Snapshot, numbers: Numbers | None = None) -> Snapshot:
    if not session.sort_by:
        return snapshot
    if session.sort_by == "req/s":
        rate = {key: number.requests or 0.0 for key, number in (numbers or {}).items()}
        models = sorted(snapshot.models, key=lambda row: -rate.get((row.namespace, row.name), 0.0))
    else:
        models = sorted(snapshot.models, key=SORT_KEYS[session.sort_by])
    return Snapshot(snapshot.at, tuple(models), snapshot.gpus, snapshot._by_name)


def _measured_data(row: ModelRow, numbers: Numbers | None) -> dict[str, Any]:
    """What Prometheus adds to a model for programs; nothing without one."""
    if numbers is None:
        return {}
    known = numbers.get((row.namespace, row.name))
    return {
        "requestsPerSecond": known.requests if known else None,
        "wakeSecondsP50": known.wake_p50 if known else None,
        "wakeSecondsP99": known.wake_p99 if known else None,
    }


def _watch(session: Session, names: tuple[str, ...], prometheus: str) -> None:
    from kubectl_greenthread.feed import Feed, Scope
    from kubectl_greenthread.watching import watch_rows, watch_screen

    if is_objects(session):
        raise Usage("-w and -o json, yaml, name or jsonpath do not go together here: use `models -w`")
    models = Scope(MODELS, session.scope, session.selector, session.field_selector)
    gpus = Scope(GPUS, list_gpus(session, [])[1], optional=True)
    pods = Scope(PODS, session.scope, MODEL_PODS, optional=True)
    wanted = {bare_name(name) for name in names}
    builder = Builder()

    def snapshot(feed: Feed) -> Snapshot:
        found = [obj for key, obj in feed.objects[models].items() if not wanted or key[1] in wanted]
        at = SystemClock().now()
        return _sorted(session, builder.build(found, feed.objects[gpus].values(), feed.objects[pods].values(), at))

    if session.terminal.height is not None:
        measured = Measured(session, prometheus, EVERY)
        watch_screen(session, [models, gpus, pods], lambda feed: picture(session, snapshot(feed), measured.numbers))
        return

    def rows(feed: Feed) -> list[tuple[object, list[Cell]]]:
        now = snapshot(feed)
        return [((row.namespace, row.name), _model_cells(session, row, now)) for row in now.models]

    watch_rows(session, [models, gpus, pods], _model_columns(session), rows)


def _say_what_is_empty(session: Session, snapshot: Snapshot) -> None:
    if not snapshot.gpus:
        tell("There are no GPUs: the node agent registers them, see that it runs on your GPU nodes.")
    if not snapshot.models:
        where = "any namespace" if session.all_namespaces else f"namespace {session.namespace}"
        more = "" if session.all_namespaces else "; -A shows those of other namespaces"
        tell(f"There are no models in {where}{more}.")


def gpu_lines(session: Session, snapshot: Snapshot) -> list[str]:
    """One line a GPU: bar, used of total, load, temperature, who waits first."""
    if not snapshot.gpus:
        return []
    terminal, wide = session.terminal, session.output == "wide"
    columns = [
        Column("GPU"),
        Column("MEMORY"),
        Column("USED/TOTAL", right=True),
        Column("UTIL", right=True, drop=2),
        Column("TEMP", right=True, drop=1),
        Column("WAITING", flexible=12),
    ]
    if wide:
        columns += [Column("POWER", right=True, drop=3), Column("PRODUCT", drop=4)]
    rows = []
    for row in snapshot.gpus:
        gpu, stats = row.gpu, row.gpu.stats
        used = (gpu.reserved + gpu.foreign) / GIB
        cells = [
            Cell(f"{gpu.node}/{gpu.index}"),
            Cell(""),
            Cell(f"{used:.1f}/{short_bytes(gpu.total)}"),
            Cell(f"{stats.utilization}%" if stats else "-"),
            Cell(f"{stats.temperature}C" if stats else "-"),
            _waiting_cell(row, snapshot),
        ]
        if wide:
            cells += [Cell(f"{stats.power}W" if stats else "-"), Cell(gpu.product or "-")]
        rows.append(cells)
    width = 30
    if terminal.width is not None:
        # everything but the bar, with nothing dropped; the bar takes what is left
        others = max(len(line) for line in type(terminal)(width=None).table(columns, rows)) - len("MEMORY")
        width = min(max(terminal.width - others, BAR_WIDTHS[0]), BAR_WIDTHS[1])
    # a table cuts by length, so the bar, which may hold colours, goes in afterwards
    lines = terminal.table(columns, [[*row[:1], Cell(_PLACE * width), *row[2:]] for row in rows], session.headers)
    head = len(lines) - len(rows)
    bars = [terminal.bar(_parts(row), width) for row in snapshot.gpus]
    return lines[:head] + [line.replace(_PLACE * width, bar) for line, bar in zip(lines[head:], bars, strict=True)]


_PLACE = "@"
"""Stands for a cell of the bar while the table is laid out; no name has it."""


def _parts(row: GpuRow) -> list[tuple[float, str, str]]:
    gpu = row.gpu
    if not gpu.total:
        return []
    order = {State.SERVING: 0, State.DEACTIVATING: 1, State.WAKING: 2, State.CONVERTING: 3}

    def place(occupant: Occupant) -> tuple[int, str]:
        return (order.get(occupant.state, 9), occupant.model)

    parts = []
    for occupant in sorted(gpu.occupants, key=place):
        if occupant.reserved:
            kind = "coming" if occupant.state in (State.WAKING, State.CONVERTING) else "full"
            parts.append((occupant.reserved / gpu.total, kind, str(occupant.state)))
    return [*parts, (gpu.foreign / gpu.total, "other", "other")]


def _waiting_cell(row: GpuRow, snapshot: Snapshot) -> Cell:
    if not row.waiting:
        return Cell("-", "dim")
    first = row.waiting[0]
    more = f" +{len(row.waiting) - 1}" if len(row.waiting) > 1 else ""
    return Cell(f"{first.model} {short_duration((snapshot.at - first.since).total_seconds())}{more}", "pending")


def model_lines(session: Session, snapshot: Snapshot, numbers: Numbers | None = None) -> list[str]:
    """One line a model."""
    if not snapshot.models:
        return []
    columns = _model_columns(session)
    rows = [_model_cells(session, row, snapshot) for row in snapshot.models]
    if numbers is not None:
        at = next(at for at, column in enumerate(columns) if column.title == "LAST WAKE")
        columns[at:at] = _measured_columns(session)
        for row, cells in zip(snapshot.models, rows, strict=True):
            cells[at:at] = _measured_cells(session, numbers.get((row.namespace, row.name)))
    titles = [column.title for column in columns]
    if titles.index("FLAGS") not in session.terminal.fit(columns, rows, session.headers)[0]:
        star, at = (" ★" if session.terminal.unicode else " *"), titles.index("MODEL")
        for row, cells in zip(snapshot.models, rows, strict=True):
            cells[at] = Cell(row.name + star) if row.pinned else cells[at]
    return session.terminal.table(columns, rows, session.headers)


def _model_columns(session: Session) -> list[Column]:
    columns = [Column("NAMESPACE")] if session.all_namespaces else []
    columns += [
        Column("MODEL", flexible=20),
        Column("STATE"),
        Column("FOR", right=True),
        Column("GPU"),
        Column("VRAM", right=True),
        Column("IN-FLIGHT", right=True, drop=5),
        Column("QUEUE", right=True, drop=6),
        Column("LAST WAKE", right=True, drop=4),
        Column("FLAGS", drop=3, flexible=10),
    ]
    if session.output == "wide":
        columns += [Column("PHASE", drop=2), Column("URL", drop=1)]
    return columns


def _model_cells(session: Session, row: ModelRow, snapshot: Snapshot) -> list[Cell]:
    cells = [Cell(row.namespace)] if session.all_namespaces else []
    cells += [
        Cell(row.name),
        printing.state_cell(session, row.state),
        printing.for_cell(row.since, snapshot.at),
        Cell(",".join(row.places) or "-"),
        printing.bytes_cell(row.vram),
        printing.number_cell(row.in_flight),
        printing.number_cell(row.queued),
        printing.wake_cell(row.last_wake),
        Cell(printing.note(row, snapshot.at)),
    ]
    if session.output == "wide":
        cells += [Cell(row.model.status.phase), Cell(row.model.status.url or "-")]
    return cells


def _measured_columns(session: Session) -> list[Column]:
    columns = [Column("REQ/S", right=True, drop=3), Column("WAKE P50/P99", right=True, drop=2)]
    return [*columns, Column("REQUESTS, 10M", drop=1)] if session.terminal.unicode else columns


def _measured_cells(session: Session, known: ModelNumbers | None) -> list[Cell]:
    rate = "-" if known is None or known.requests is None else f"{known.requests:.1f}"
    wakes = "-"
    if known is not None and known.wake_p50 is not None:
        wakes = f"{short_duration(known.wake_p50)}/{short_duration(known.wake_p99 or known.wake_p50)}"
    cells = [Cell(rate, "dim" if rate in ("-", "0.0") else ""), Cell(wakes)]
    if session.terminal.unicode:
        from greenthread.prometheus import sparkline

        cells.append(Cell(sparkline(known.history, TREND) if known is not None else "", "serving"))
    return cells


def waiting_lines(session: Session, snapshot: Snapshot) -> list[str]:
    """Why each waiting model waits, and what happens next."""
    if not session.headers:
        return []
    terminal = session.terminal
    waiting = [row for row in snapshot.models if row.state in (Shown.PENDING, Shown.CANNOT_FIT)]
    lines = []
    for row in waiting[:WAITING_SHOWN]:
        first, *more = terminal.wrap(why(row, snapshot), "  ")
        lines += [terminal.paint(row.name, str(row.state)) + first.removeprefix(row.name), *more]
        if then := printing.next_text(row, snapshot):
            lines += [terminal.paint(line, "dim") for line in terminal.wrap(f"  next: {then}", "  ")]
    if len(waiting) > WAITING_SHOWN:
        lines.append(f"and {len(waiting) - WAITING_SHOWN} more models wait")
    return lines
