"""The cluster at a moment that is over: as much is known of it as was known then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

from greenthread.kube.resources import EVENTS, GPUS
from tui.history import History, advance, nothing
from tui.known import SAMPLE, Known, Told, read_event
from tui.series import Seen
from tui.tracks import Tracks, tracks
from tui.wakes import Key

WARM = 65.0
"""Seconds before the moment from which on the cluster is followed up to it: sparklines and wakes need some."""
WARM_CHANGES = 1024
"""And changes at most."""
LATER_CHANGES = 4096
"""Changes after the moment in which is looked for what happened then."""
_LOOKS = 16
"""Snapshots taken at most to see the steps of the wakes that go on."""


class _Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)

    def seconds(self) -> float:
        return self.at


class Past:
    """Looks at a history. `moment` is in seconds since 1970; `known` is what was known then."""

    def __init__(self, history: History, namespace: str | None = None) -> None:
        self.history = history
        self._clock = _Clock()
        self._namespace = namespace
        self._state = nothing()
        self.moment = float("-inf")
        self.known = Known(self._clock, self._clock.seconds, namespace)
        self._tracks: Tracks | None = None
        self._later: dict[tuple[int, Key | None], list[Told]] = {}

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.moment, UTC)

    def seek(self, at: float) -> None:
        """Looks at this moment, or the nearest that is known. NoRecording from a broken recording."""
        at = max(at, self.history.began)
        self._later.clear()
        if not self.moment <= at <= self.moment + WARM or not self.history.is_one(self.moment, at):
            start = max(at - WARM, self.history.back(at, WARM_CHANGES))
            if not self.history.is_one(start, at):
                start = at
            self._state = self.history.state(start)
            self._clock.at = start
            self.known.become(self._state)
            self.moment = start
        self._play(at)

    def step(self, by: int) -> bool:
        """To the next moment (1) at which something happened, or the last one (-1); False if there is none."""
        at = self.history.stop(self.moment, by)
        if at is None:
            return False
        self.seek(at)
        return True

    def later(self, count: int, only: Key | None = None) -> Sequence[Told]:
        """What was told in the hour after this moment, oldest first; of one model if it is named."""
        if (count, only) in self._later:
            return self._later[count, only]
        found = self._later[count, only] = []
        for line in islice(self.history.lines(self.moment, self.moment + 3600), LATER_CHANGES):
            if line["k"] == EVENTS.plural and "o" in line:
                told = read_event(line["o"])
                if told is not None and (only is None or told.key == only):
                    found.append(told)
                    if len(found) >= count:
                        break
        return found

    def tracks(self) -> Tracks:
        """What the GPUs held around this moment."""
        if self._tracks is None or self._tracks.moment != self.moment:
            self._tracks = tracks(self.history, self.moment)
        return self._tracks

    def _play(self, until: float) -> None:
        """Follows the changes up to there, and measures on the way."""
        lines = list(self.history.lines(self.moment, until))
        looks = {line["t"] for line in lines if line["k"] == GPUS.plural and "q" not in line}
        look_from = sorted(looks)[-_LOOKS] if len(looks) > _LOOKS else 0.0
        sample = self.moment + SAMPLE - self.moment % SAMPLE
        before = self.moment
        for line in lines:
            at = line["t"]
            if before in looks and before >= look_from and at > before:
                self.known.snapshot()
            while sample <= at:
                self._clock.at = sample
                self.known.sample()
                sample += SAMPLE
            self._clock.at = before = at
            change = advance(self._state, line)
            if change.new is not None:
                self.known.hear(change.plural, "MODIFIED", change.new)
            else:
                self.known.hear(change.plural, "DELETED", _stub(change.key))
        while sample <= until:
            self._clock.at = sample
            self.known.sample()
            sample += SAMPLE
        self._clock.at = self.moment = until


def survey(history: History, into: Seen) -> Iterator[None]:
    """Measures all of a history, a piece with each turn: what was seen before this program began, or in a recording."""
    clock = _Clock()
    known = Known(clock, clock.seconds)
    known.seen = into
    for segment in list(history.segments):
        state = history.state(segment.began)
        clock.at = segment.began
        if segment.fresh:
            known.become(state)
            known.seen = into
        sample = segment.began + SAMPLE - segment.began % SAMPLE
        for number, line in enumerate(history.lines(segment.began, segment.ended)):
            while sample <= line["t"]:
                clock.at = sample
                known.sample()
                sample += SAMPLE
            clock.at = line["t"]
            change = advance(state, line)
            if change.new is not None:
                known.hear(change.plural, "MODIFIED", change.new)
            else:
                known.hear(change.plural, "DELETED", _stub(change.key))
            if number % 64 == 0:
                yield
        yield


def _stub(key: Key) -> dict[str, dict[str, str]]:
    return {"metadata": {"namespace": key[0], "name": key[1]}}
