"""Wall-clock time as a value that can be injected, and RFC 3339 times."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:  # `typing` takes longer to import than this module
    Protocol = object


class Clock(Protocol):
    """Tells the wall clock's time. Durations are the event loop's business, not a clock's."""

    def now(self) -> datetime:
        """Now, in UTC."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


_RFC3339 = r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))"
_PLAIN = {20: "--T::Z", 27: "--T::.Z"}
"""What is not a digit in the two forms that our parts and Kubernetes write, by length."""
_PLACES = {20: (4, 7, 10, 13, 16, 19), 27: (4, 7, 10, 13, 16, 19, 26)}


@lru_cache(4096)  # an object is read anew at each of its changes, and few of its times are other ones then
def parse_time(text: str) -> datetime:
    """A UTC datetime from RFC 3339 text such as ``2026-11-22T14:03:22.5Z``; ValueError for anything else."""
    size = len(text)
    if size in _PLAIN and text.isascii() and "".join([text[at] for at in _PLACES[size]]) == _PLAIN[size]:
        return datetime.fromisoformat(text)  # checks that the rest are digits, and dates
    match = re.fullmatch(_RFC3339, text, re.ASCII)
    if not match:
        raise ValueError(f"{text!r} is not a time; write it like 2026-11-22T14:03:22Z")
    year, month, day, hour, minute, second, fraction, zulu, sign, zone_hours, zone_minutes = match.groups()
    micros = int((fraction or "0").ljust(6, "0")[:6])
    zone = UTC
    if not zulu:
        offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
        zone = timezone(-offset if sign == "-" else offset)
    moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), micros, tzinfo=zone)
    return moment.astimezone(UTC)


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: fixed width, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
