"""`--wait`: follows models until what was asked for has happened, and says how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from greenthread.clock import SystemClock
from greenthread.explain import accounts
from greenthread.kube.resources import EVENTS, GPUS, PODS
from greenthread.names import LABEL_MODEL
from greenthread.outlook import why
from greenthread.snapshot import Builder, ModelRow, Shown, Snapshot
from greenthread.units import short_duration
from kubectl_greenthread.failures import Failure, Interrupted, TimedOut
from kubectl_greenthread.feed import Feed, Scope
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out, tell
from kubectl_greenthread.progress import FRAME, Painter, line
from kubectl_greenthread.reading import Told, View, events_selector, told

RECORD_AFTER = 2.0
"""Seconds for which the sidecar's own account is awaited once the GPUs show the result."""
AWAKE = (Shown.SERVING, Shown.WAKING, Shown.DEACTIVATING, Shown.CONVERTING)


class Goal:
    """What is awaited of one model: `verb` for people (`wake`), `done` on its row, and the Events that tell of it.

    `outcome`: how it ended, for people, if no Event tells; `said`: what is no news.
    """

    def __init__(
        self,
        name: str,
        verb: str,
        done: Callable[[ModelRow], bool],
        succeeded: frozenset[str],
        failed: frozenset[str],
        outcome: str,
        said: set[str] | None = None,
    ) -> None:
        self.name, self.verb, self.done = name, verb, done
        self.succeeded, self.failed, self.outcome = succeeded, failed, outcome
        self.said: set[str] = said or set()


def woke(name: str) -> Goal:
    return Goal(
        name,
        "wake",
        lambda row: row.state is Shown.SERVING,
        frozenset({"Woke"}),
        frozenset({"WakeFailed", "BootFailed", "EngineDied"}),
        f"woke {name}",
    )


def slept(name: str) -> Goal:
    return Goal(
        name,
        "sleep",
        lambda row: row.vram == 0 and row.state not in AWAKE,
        frozenset({"Slept", "GaveWay", "Preempted"}),
        frozenset({"EngineDied"}),
        f"{name} sleeps",
        {Shown.SERVING},  # that it served at first is no news
    )


class Waiter:
    """Starts to watch before the wish is written, so that nothing that follows is missed."""

    def __init__(self, session: Session, view: View, goals: Sequence[Goal]) -> None:
        self._session, self._models, self._goals = session, view.models, list(goals)
        self._gpus = Scope(GPUS, view.gpu_namespace)
        names = ",".join(sorted({goal.name for goal in goals}))
        self._pods = Scope(PODS, session.namespace, label_selector=f"{LABEL_MODEL} in ({names})")
        self._events = {
            name: Scope(EVENTS, session.namespace, field_selector=events_selector(name), optional=True)
            for name in sorted({goal.name for goal in goals})
        }
        self._feed = Feed(session, [self._gpus, self._pods, *self._events.values()])
        self._old = {
            (scope, key, str(event.get("count")))
            for scope in self._events.values()
            for key, event in self._feed.objects[scope].items()
        }
        self._failure = ""
        self._builder = Builder()
        self._painter = Painter(session.terminal)
        self._took = {goal.name: self._usual(goal) for goal in goals}

    def finish(self, timeout: float) -> None:
        """Returns when every goal is reached; TimedOut, Failure or Interrupted (Ctrl-C) say what became of it."""
        deadline = time.monotonic() + timeout
        with self._feed:
            try:
                while True:
                    snapshot = self._snapshot()
                    self._goals = [goal for goal in self._goals if not self._look(goal, snapshot)]
                    if self._failure:
                        raise Failure(self._failure)
                    if not self._goals:
                        return
                    self.paint()
                    left = deadline - time.monotonic()
                    if not self._feed.next(min(left, FRAME) if self._painter.live else left) and left <= FRAME:
                        raise self._too_late(self._snapshot(), timeout)
            except KeyboardInterrupt:
                what = ", ".join(f"{goal.name} still goes on to {goal.verb}" for goal in self._goals)
                raise Interrupted(f"stopped waiting; {what}") from None
            finally:
                self._painter.clear()

    def step(self, timeout: float) -> ModelRow:
        """For who waits for something else meanwhile: takes in a change, shows how it goes; the first goal's row."""
        self._feed.next(timeout)
        snapshot = self._snapshot()
        row = self._row(self._goals[0], snapshot)
        if row.state is not Shown.SERVING:
            self._progress(self._goals[0], row, snapshot, self._news(self._goals[0]))
        self.paint()
        return row

    def close(self) -> None:
        """Stops watching, and takes away what it has painted."""
        self._painter.clear()
        self._feed.__exit__()

    def paint(self) -> None:
        """Shows on a terminal how far the goals are."""
        if self._painter.live:
            snapshot = self._snapshot()
            terminal = self._session.terminal
            self._painter.paint(
                [line(terminal, self._row(goal, snapshot), snapshot, self._took[goal.name]) for goal in self._goals]
            )

    def _usual(self, goal: Goal) -> dict[str, float]:
        """How long the steps of a goal took last time, seconds: `engine` of a wake, `boot`, `sleep`."""
        took: dict[str, float] = {}
        for account in accounts(self._feed.objects[self._events[goal.name]].values()):
            name = {"wake": "engine", "boot": "boot", "sleep": "sleep"}.get(account.kind)
            if name and not account.error and "engine" in account.steps:
                took[name] = account.steps["engine"]
        return took

    def _snapshot(self) -> Snapshot:
        objects = self._feed.objects
        return self._builder.build(
            self._models, objects[self._gpus].values(), objects[self._pods].values(), SystemClock().now()
        )

    def _row(self, goal: Goal, snapshot: Snapshot) -> ModelRow:
        return next(row for row in snapshot.models if row.name == goal.name)

    def _news(self, goal: Goal) -> list[Told]:
        scope = self._events[goal.name]
        return [
            told(event)
            for key, event in self._feed.objects[scope].items()
            if (scope, key, str(event.get("count"))) not in self._old
        ]

    def _look(self, goal: Goal, snapshot: Snapshot) -> bool:
        """Says what is new; True when the goal is reached."""
        row, news = self._row(goal, snapshot), self._news(goal)
        failure = next((item for item in news if item.reason in goal.failed), None)
        if failure is not None:
            self._failure = f"{goal.name} did not {goal.verb}: {failure.message}"
            return False
        if goal.done(row):
            self._say_outcome(goal)
            return True
        self._progress(goal, row, snapshot, news)
        return False

    def _progress(self, goal: Goal, row: ModelRow, snapshot: Snapshot, news: list[Told]) -> None:
        lines = {f"{goal.name} {item.message}" for item in news if item.reason == "Preempting"}
        waiting = next((item for item in reversed(news) if item.reason == "Waiting"), None)
        if waiting is not None and Shown.PENDING not in goal.said:
            # the GPU objects do not show one that cannot fit, and its report may come later
            goal.said |= {Shown.PENDING, Shown.CANNOT_FIT}
            lines.add(f"{goal.name} {waiting.message}")
        if row.state in (*AWAKE, Shown.PENDING, Shown.CANNOT_FIT) and row.state not in goal.said:
            goal.said.add(row.state)
            lines.add(why(row, snapshot))
        if self._feed.trouble:
            lines.add(f"{self._feed.trouble}; trying again")
        for text in sorted(lines - goal.said):
            goal.said.add(text)
            if not self._painter.live:
                tell(self._session.terminal.clean(text))

    def _say_outcome(self, goal: Goal) -> None:
        """The sidecar's account with its times, which comes a moment after the GPUs show the result."""
        deadline = time.monotonic() + (RECORD_AFTER if goal.succeeded else 0.0)
        while True:
            account = next((item for item in self._news(goal) if item.reason in goal.succeeded), None)
            if account is not None:
                text = f"{goal.name} {account.message}"
                if account.message.startswith("woke "):
                    text = f"woke {goal.name}{account.message.removeprefix('woke')}"
                break
            if not self._feed.next(deadline - time.monotonic()):
                text = goal.outcome
                break
        if not self._session.output:
            self._painter.clear()
            out(self._session.terminal.clean(text))

    def _too_late(self, snapshot: Snapshot, timeout: float) -> TimedOut:
        texts = []
        for goal in self._goals:
            row = self._row(goal, snapshot)
            text = why(row, snapshot)
            waiting = next((item for item in reversed(self._news(goal)) if item.reason == "Waiting"), None)
            if waiting is not None and row.state is Shown.SLEEPING:
                text = f"it {waiting.message}"
            text = self._feed.trouble or text
            texts.append(f"{goal.name} did not {goal.verb} within {short_duration(timeout)}, and still may: {text}")
        return TimedOut("; ".join(texts))
