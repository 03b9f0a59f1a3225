"""Durations (Go style) and memory sizes (Kubernetes quantities), read and written for programs and for people."""

from __future__ import annotations

import math
import re

_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)

_QUANTITY = r"(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d{1,2})|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E))?"
_QUANTITY_UNITS: dict[str, str | int] = {
    "n": "1e-9", "u": "1e-6", "m": "1e-3", "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip

GIB = 2**30


def parse_duration(text: str) -> float:
    """Seconds from a Go-style duration: ``500ms``, ``30s``, ``1h30m``, ``0s`` (also ``0``). ValueError with advice."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration; write it like 500ms, 30s, 5m or 1h30m")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def format_duration(seconds: float) -> str:
    """The shortest Go-style duration, to the millisecond: ``1h30m``, ``10s``, ``500ms``, ``1.5s``, ``0s``."""
    millis = round(seconds * 1000)
    if millis == 0:
        return "0s"
    if millis < 1000:
        return f"{millis}ms"
    minutes, rest = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    if rest:
        text += f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return text


def short_duration(seconds: float) -> str:
    """For people, two units at most: ``540ms``, ``1.8s``, ``41s``, ``3m12s``, ``2h04m``, ``3d02h``."""
    seconds = max(seconds, 0.0)
    if seconds < 0.9995:
        return f"{round(seconds * 1000)}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def parse_quantity(text: str | int) -> int:
    """Bytes from a Kubernetes quantity (``10Gi``, ``1.5G``, ``1e9``, ``1024``), rounded up. ValueError with advice."""
    if isinstance(text, int):
        return text
    from decimal import Decimal  # a moment to import, and few programs read quantities

    match = re.fullmatch(_QUANTITY, text, re.ASCII)
    if not match:
        raise ValueError(f"{text!r} is not a memory size; write it like 512Mi, 10Gi or 80G")
    number, exponent, unit = match.groups()
    value = Decimal(number)
    if exponent is not None:
        value *= Decimal(10) ** int(exponent)
    elif unit:
        value *= Decimal(_QUANTITY_UNITS[unit])
    return math.ceil(value)


def human_bytes(count: int) -> str:
    """``88.2 GiB``, ``512.0 MiB``, ``0 B``: one decimal, binary units."""
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**exponent:
            return f"{count / 1024**exponent:.1f} {unit}"
    return f"{count} B"


def short_bytes(count: int) -> str:
    """For tables, always in GiB with one decimal: ``88.2G``, ``0.1G``."""
    return f"{count / GIB:.1f}G"
