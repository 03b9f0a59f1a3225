"""`explain`: why a model's last wakes waited, and what stands in the way now."""

from __future__ import annotations

from greenthread import explain as explaining
from greenthread.clock import format_time
from greenthread.explain import Account, Wake
from greenthread.kube.errors import Forbidden
from greenthread.kube.resources import EVENTS
from greenthread.outlook import why
from greenthread.snapshot import ModelRow, Shown, Snapshot
from greenthread.units import short_bytes, short_duration
from kubectl_greenthread import printing
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out, print_data
from kubectl_greenthread.reading import View, bare_name, events_selector, read_models

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STEPS_WIDTH = 40
"""Cells of a wake's bar of steps, at most."""


def explain(session: Session, name: str, last: int) -> None:
    """Say why MODEL's last wakes took their time: what they waited for, how long each step took, and who made room by
    which rule; what stands in the way now, and what would happen if a request came."""
    view = read_models(session, [name])
    missing = list(view.missing)
    row = view.row(bare_name(name))
    # whom it needs to know: all Models, since those in the way may be of other namespaces
    snapshot = _of_all(session, view)
    row = snapshot.model(row.namespace, row.name) or row
    told = _accounts(session, missing)
    wakes = explaining.wakes(row, told)
    wakes = wakes[-last:] if last else []
    asked = explaining.if_asked(row, snapshot)
    if session.output:
        print_data(session, _data(row, snapshot, wakes, asked))
    else:
        sections = [
            _now(session, row, snapshot, asked),
            _past(session, row, wakes, snapshot),
            _sleeps(session, row, told, snapshot),
        ]
        out("\n\n".join("\n".join(lines) for lines in sections if lines))
    printing.warn(session, missing)


def _of_all(session: Session, view: View) -> Snapshot:
    """The snapshot with the Models of all namespaces, or of as many as may be read."""
    from greenthread.clock import SystemClock
    from greenthread.kube.core import ObjectList
    from greenthread.kube.resources import GPUS, MODELS, PODS
    from greenthread.snapshot import build
    from kubectl_greenthread.reading import MODEL_PODS

    for namespace in (None, session.namespace):
        found = session.client.lists([(MODELS, namespace, "", ""), (GPUS, view.gpu_namespace, "", ""),
                                      (PODS, namespace, MODEL_PODS, "")])  # fmt: skip
        lists = [each.items if isinstance(each, ObjectList) else [] for each in found]
        if isinstance(found[0], ObjectList):
            return build(lists[0], lists[1], lists[2], SystemClock().now())
    return view.snapshot


def _accounts(session: Session, missing: list[str]) -> list[Account]:
    """What sidecars told, everywhere if that may be read: those that made room may be of other namespaces."""
    try:
        items = session.client.list(EVENTS, None, field_selector=events_selector()).items
    except Forbidden:
        try:
            items = session.client.list(EVENTS, session.namespace, field_selector=events_selector()).items
        except Forbidden as error:
            missing.append(f"past wakes are not shown: {error}")
            return []
    return explaining.accounts(items)


def _now(session: Session, row: ModelRow, snapshot: Snapshot, asked: explaining.IfAsked) -> list[str]:
    terminal = session.terminal
    state = printing.state_cell(session, row.state)
    since = f" for {short_duration((snapshot.at - row.since).total_seconds())}" if row.since else ""
    lines = [f"{terminal.paint(row.name, 'bold')}  {terminal.paint(state.text, state.style)}{since}"]
    lines += terminal.wrap(f"  now      {why(row, snapshot)}", " " * 11)
    then = printing.next_text(row, snapshot)
    if then and row.state is not Shown.SLEEPING:
        lines += terminal.wrap(f"  next     {then}", " " * 11)
    lines += terminal.wrap(f"  a request now: {asked.text}", " " * 11)
    for text in asked.more:
        lines += terminal.wrap(f"           - {text}", " " * 13)
    return lines


def _past(session: Session, row: ModelRow, wakes: list[Wake], snapshot: Snapshot) -> list[str]:
    terminal = session.terminal
    if not wakes:
        return [f"No wake of {row.name} is on record: Kubernetes keeps events for an hour."]
    lines = [
        terminal.paint("The last wake" if len(wakes) == 1 else f"The last {len(wakes)} wakes, newest first", "bold")
    ]
    longest = max(wake.account.total for wake in wakes) or 1.0
    for wake in reversed(wakes):
        account = wake.account
        ago = short_duration((snapshot.at - account.began).total_seconds())
        result = "failed" if account.error else "woke"
        head = f"{ago} ago  {result} in {short_duration(account.total)} on {account.gpus}"
        lines.append(f"  {terminal.paint(head, 'failed' if account.error else 'serving')}  ({_asked_by(account)})")
        lines += _steps(session, account, longest)
        if account.error:
            lines += terminal.wrap(f"    error   {account.error}", " " * 12)
        if account.waited_for:
            lines += terminal.wrap(f"    waited  it {account.waited_for}", " " * 12)
        for made in wake.made_room:
            lines += terminal.wrap(f"    room    {made.text()}", " " * 12)
    return lines


def _asked_by(account: Account) -> str:
    return {"request": "a request came", "asked to": "a person asked"}.get(account.reason, account.reason or "wake")


def _steps(session: Session, account: Account, longest: float) -> list[str]:
    """A bar for each step, on one scale for all wakes shown; each begins where the one before ended."""
    terminal = session.terminal
    room = (terminal.width or 100) - 32
    width = max(min(STEPS_WIDTH, room), 8)
    full = "█" if terminal.unicode else "#"
    lines, begun = [], 0.0
    for name, took in account.steps.items():
        start = min(round(begun / longest * width), width - 1)
        cells = max(round((begun + took) / longest * width) - start, 1)
        bar = " " * start + full * min(cells, width - start)
        style = "pending" if name == "queue" else "waking"
        lines.append(f"    {name:<8}{short_duration(took):>7}  {terminal.paint(bar, style)}".rstrip())
        begun += took
    return lines


def _sleeps(session: Session, row: ModelRow, told: list[Account], snapshot: Snapshot) -> list[str]:
    """Why it last went to sleep."""
    own = [a for a in told if (a.namespace, a.model) == (row.namespace, row.name) and a.kind in ("sleep", "crash")]
    if not own:
        return []
    last = own[-1]
    ago = short_duration((snapshot.at - last.began).total_seconds())
    steps = ", ".join(f"{name} {short_duration(took)}" for name, took in last.steps.items())
    text = f"Its last sleep, {ago} ago: {last.reason}" + (
        f"; it took {short_duration(last.total)} ({steps})" if steps else ""
    )
    if last.left is not None:
        text += f" and left {short_bytes(last.left) if last.left else 'nothing'} on the GPU"
    return session.terminal.wrap(text, "  ")


def _data(row: ModelRow, snapshot: Snapshot, wakes: list[Wake], asked: explaining.IfAsked) -> dict[str, Any]:
    return printing.model_data(row, snapshot) | {
        "ifAsked": {"text": asked.text, "then": list(asked.more)},
        "wakes": [
            {
                "at": format_time(wake.account.began),
                "kind": wake.account.kind,
                "reason": wake.account.reason,
                "gpus": wake.account.gpus,
                "totalSeconds": wake.account.total,
                "stepSeconds": dict(wake.account.steps),
                "waitedFor": wake.account.waited_for,
                "error": wake.account.error,
                "madeRoom": [{"model": made.model, "rule": made.rule} for made in wake.made_room],
            }
            for wake in wakes
        ],
    }
