"""`status`: all that is known of one model."""

from __future__ import annotations

from greenthread.outlook import why
from greenthread.snapshot import ModelRow, Snapshot, place
from greenthread.units import format_duration, human_bytes, short_duration
from kubectl_greenthread import printing
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out, print_data, print_objects
from kubectl_greenthread.reading import Told, bare_name, read_events, read_models
from kubectl_greenthread.terminal import Cell, Column

EVENTS_SHOWN = 10


def status(session: Session, name: str) -> None:
    """Show MODEL: its state and why, what happens next, its replicas, settings and last events."""
    view = read_models(session, [name])
    missing = list(view.missing)
    if session.output == "name":
        print_objects(session, view.models)
        return
    row, snapshot = view.row(bare_name(name)), view.snapshot
    events = read_events(session, row.name, missing)
    if session.output:
        print_data(session, _data(row, snapshot, events))
    else:
        sections = [_head(session, row, snapshot), _facts(session, row), _replicas(session, row, snapshot),
                    _events(session, events, snapshot)]  # fmt: skip
        out("\n\n".join("\n".join(lines) for lines in sections if lines))
    printing.warn(session, missing)


def _data(row: ModelRow, snapshot: Snapshot, events: list[Told]) -> dict[str, object]:
    return printing.model_data(row, snapshot) | {
        "phase": row.model.status.phase,
        "modelName": row.model.spec.model_name,
        "url": row.model.status.url,
        "servingMemoryPerGPU": row.model.status.serving_memory_per_gpu,
        "replicas": [
            {
                "pod": replica.pod.name,
                "state": str(replica.state),
                "node": replica.node,
                "gpus": list(replica.gpus),
                "memoryBytes": replica.vram,
            }
            for replica in row.replicas
        ],
        "events": [
            {"at": item.at.isoformat() if item.at else None, "reason": item.reason, "message": item.message}
            for item in events
        ],
    }


def _head(session: Session, row: ModelRow, snapshot: Snapshot) -> list[str]:
    terminal = session.terminal
    state = printing.state_cell(session, row.state)
    since = f" for {short_duration((snapshot.at - row.since).total_seconds())}" if row.since else ""
    where = f" on {', '.join(row.places)}" if row.places else ""
    lines = [
        f"{terminal.paint(row.name, 'bold')}  {terminal.paint(state.text, state.style)}{since}{where}",
        *terminal.wrap(f"  why   {why(row, snapshot)}", " " * 8),
    ]
    then = printing.next_text(row, snapshot)
    return [*lines, *terminal.wrap(f"  next  {then}", " " * 8)] if then else lines


def _facts(session: Session, row: ModelRow) -> list[str]:
    spec, status = row.model.spec, row.model.status
    ready = next((condition for condition in status.conditions if condition.type == "Ready"), None)
    phase = status.phase
    if ready and ready.status != "True" and ready.message:
        phase += f": {ready.message}"
    memory = status.serving_memory_per_gpu
    per = f"on each of {spec.tensor_parallel_size} GPUs" if spec.tensor_parallel_size > 1 else "on one GPU"
    fairness = (
        f"serves at least {format_duration(spec.fairness.min_runtime)}, waits "
        f"{format_duration(spec.fairness.max_wait_time)} before others must leave"
    )
    if spec.fairness.yield_after:
        fairness += f", gives way when idle {format_duration(spec.fairness.yield_after)}"
    idle = f"when idle {format_duration(spec.sleep.idle_timeout)}" if spec.sleep.idle_timeout else "never by itself"
    facts = [
        ("Namespace", row.namespace),
        ("Model", spec.model_name),
        ("Phase", phase),
        ("URL", status.url or "-"),
        ("Replicas", f"{spec.replicas} wanted, {status.ready_replicas} ready, {status.serving_replicas} serving, "
                     f"{status.sleeping_replicas} asleep"),
        ("Memory", f"{human_bytes(memory)} {per}" if memory else "not measured yet"),
        ("In flight", _known(row.in_flight)),
        ("Queue", _known(row.queued)),
        ("Requests", _known(row.requests)),
        ("Last wake", short_duration(row.last_wake) if row.last_wake is not None else "-"),
        ("Pinned", "yes: never preempted" if row.pinned else "no"),
        ("Fairness", fairness),
        ("Sleeps", f"{idle}; requests in flight get {format_duration(spec.sleep.drain_timeout)}"),
        ("Weights", "stay in host memory while asleep" if spec.staging.pinned else "are read back from disk"),
    ]  # fmt: skip
    limited = next((each for each in status.conditions if each.type == "SleepsAsAsked" and each.status != "True"), None)
    if limited:
        facts.append(("Limited", limited.message))
    width = max(len(title) for title, _ in facts)
    return [f"{title.ljust(width)}  {session.terminal.clean(text)}" for title, text in facts]


def _known(number: int | None) -> str:
    return "not reported" if number is None else str(number)


def _replicas(session: Session, row: ModelRow, snapshot: Snapshot) -> list[str]:
    if not row.replicas:
        return []
    columns = [
        Column("POD", flexible=20),
        Column("STATE"),
        Column("FOR", right=True),
        Column("GPU"),
        Column("VRAM", right=True),
        Column("IN-FLIGHT", right=True, drop=2),
        Column("QUEUE", right=True, drop=3),
        Column("LAST WAKE", right=True, drop=1),
    ]
    rows = [
        [
            Cell(replica.pod.name),
            printing.state_cell(session, replica.state),
            printing.for_cell(replica.since, snapshot.at),
            Cell(place(replica.node, replica.gpus) or "-"),
            printing.bytes_cell(replica.vram),
            printing.number_cell(replica.report.in_flight if replica.report else None),
            printing.number_cell(replica.report.queued if replica.report else None),
            printing.wake_cell(replica.report.last_wake if replica.report else None),
        ]
        for replica in row.replicas
    ]
    return session.terminal.table(columns, rows, session.headers)


def _events(session: Session, events: list[Told], snapshot: Snapshot) -> list[str]:
    if not events:
        return []
    columns = [Column("AGO", right=True), Column("EVENT"), Column("MESSAGE", flexible=20)]
    rows = [
        [
            printing.for_cell(item.at, snapshot.at),
            Cell(item.reason, "failed" if item.warning else ""),
            Cell(item.message),
        ]
        for item in events[-EVENTS_SHOWN:]
    ]
    return session.terminal.table(columns, rows, session.headers)
