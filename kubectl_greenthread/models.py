"""`models`: the Models as objects, and what became of them."""

from __future__ import annotations

from greenthread.clock import SystemClock
from greenthread.kube.resources import GPUS, MODELS, PODS
from greenthread.snapshot import Builder, ModelRow, Snapshot
from kubectl_greenthread import printing
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import is_objects, out, print_objects, sorted_by, tell
from kubectl_greenthread.reading import MODEL_PODS, bare_name, list_gpus, read_all, read_objects
from kubectl_greenthread.terminal import Cell, Column

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubectl_greenthread.feed import Feed


def models(session: Session, names: tuple[str, ...], watch: bool) -> None:
    """List Models: what they serve, how far they are, and where they live."""
    if watch:
        _watch(session, names)
    elif is_objects(session):
        print_objects(session, read_objects(session, MODELS, names), single=len(names) == 1)
    else:
        view = read_all(session, names)
        order = [(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in sorted_by(session, view.models)]
        found = [row for key in order if (row := view.snapshot.model(*key)) is not None]
        if not found:
            tell(f"There are no models in {f'namespace {session.scope}' if session.scope else 'any namespace'}.")
            return
        rows = [_cells(session, row, view.snapshot) for row in found]
        for line in session.terminal.table(_columns(session), rows, session.headers):
            out(line)
        printing.warn(session, view.missing)


def _watch(session: Session, names: Sequence[str]) -> None:
    from kubectl_greenthread.feed import Scope
    from kubectl_greenthread.watching import watch_objects, watch_rows

    wanted = {bare_name(name) for name in names}
    scope = Scope(MODELS, session.scope, session.selector, session.field_selector)
    if is_objects(session):
        watch_objects(session, scope, lambda obj: not wanted or obj["metadata"]["name"] in wanted)
        return
    gpus = Scope(GPUS, list_gpus(session, [])[1], optional=True)
    pods = Scope(PODS, session.scope, MODEL_PODS, optional=True)
    builder = Builder()

    def rows(feed: Feed) -> list[tuple[object, list[Cell]]]:
        found = [obj for key, obj in feed.objects[scope].items() if not wanted or key[1] in wanted]
        now = SystemClock().now()
        snapshot = builder.build(found, feed.objects[gpus].values(), feed.objects[pods].values(), now)
        return [((row.namespace, row.name), _cells(session, row, snapshot)) for row in snapshot.models]

    watch_rows(session, [scope, gpus, pods], _columns(session), rows)


def _columns(session: Session) -> list[Column]:
    columns = [Column("NAMESPACE")] if session.all_namespaces else []
    columns += [
        Column("MODEL", flexible=20),
        Column("SERVES", drop=3, flexible=20),
        Column("STATE"),
        Column("PHASE", drop=5),
        Column("READY", right=True, drop=6),
        Column("GPU"),
        Column("VRAM/GPU", right=True, drop=4),
        Column("PINNED", drop=2),
        Column("AGE", right=True, drop=1),
    ]
    if session.output == "wide":
        columns += [
            Column("URL", drop=1),
            Column("MIN-RUNTIME", right=True, drop=1),
            Column("MAX-WAIT", right=True, drop=1),
        ]
    return columns


def _cells(session: Session, row: ModelRow, snapshot: Snapshot) -> list[Cell]:
    from greenthread.units import format_duration

    spec, status = row.model.spec, row.model.status
    memory = status.serving_memory_per_gpu
    cells = [Cell(row.namespace)] if session.all_namespaces else []
    cells += [
        Cell(row.name),
        Cell(spec.model_name),
        printing.state_cell(session, row.state),
        Cell(status.phase, "failed" if status.phase == "Failed" else ""),
        Cell(f"{status.ready_replicas}/{spec.replicas}"),
        Cell(",".join(row.places) or "-"),
        printing.bytes_cell(memory) if memory else Cell("-"),
        Cell("yes" if row.pinned else "no", "" if row.pinned else "dim"),
        printing.for_cell(row.model.created_at, snapshot.at),
    ]
    if session.output == "wide":
        fairness = spec.fairness
        cells += [
            Cell(status.url or "-"),
            Cell(format_duration(fairness.min_runtime)),
            Cell(format_duration(fairness.max_wait_time)),
        ]
    return cells
