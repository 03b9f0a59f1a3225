"""A request's own terms: how long it may wait, whether others go for it, whether its stream has a heartbeat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from greenthread.units import format_duration, parse_duration
from proxy.errors import HttpError

_LONGEST = 32  # characters of a duration


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks for by its header fields."""

    max_wait: float = math.inf
    """X-GreenThread-Max-Wait: seconds that it may wait for its model, at all gates together; past it 503."""
    preempts: bool = True
    """False by X-GreenThread-Preempt: never."""
    heartbeat: bool = True
    """False by X-GreenThread-Heartbeat: off."""

    def lines(self, waited: float) -> list[bytes]:
        """The fields for the next hop, which may let it wait for what is left after `waited` seconds."""
        found = []
        if self.max_wait < math.inf:
            left = format_duration(max(self.max_wait - waited, 0.0))
            found.append(b"X-GreenThread-Max-Wait: " + left.encode("ascii"))
        if not self.preempts:
            found.append(b"X-GreenThread-Preempt: never")
        if not self.heartbeat:
            found.append(b"X-GreenThread-Heartbeat: off")
        return found


NO_TERMS = Terms()


def parse_terms(lines: Sequence[bytes]) -> Terms:
    """Read the fields (`Name: value`, names in any case). Raises HttpError 400 that says what to write."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        if name.lower() in found:
            raise _wrong(f"The request has more than one {name} field.")
        found[name.lower()] = value.strip(" \t")
    max_wait = math.inf
    text = found.get("x-greenthread-max-wait")
    if text is not None:
        try:
            max_wait = parse_duration(text if len(text) <= _LONGEST else "")
        except ValueError:
            raise _wrong("X-GreenThread-Max-Wait must be a duration like 500ms, 3s or 1m30s.") from None
    if found.get("x-greenthread-preempt", "never") != "never":
        raise _wrong("X-GreenThread-Preempt must be 'never', or be left out.")
    if found.get("x-greenthread-heartbeat", "off") != "off":
        raise _wrong("X-GreenThread-Heartbeat must be 'off', or be left out.")
    return Terms(max_wait, "x-greenthread-preempt" not in found, "x-greenthread-heartbeat" not in found)


def _wrong(message: str) -> HttpError:
    return HttpError(400, message, "invalid_header", close=False)
