"""Numbers about numbers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

GB = 10**9
GIB = 2**30


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 99th percentile and number of samples; milliseconds."""
    if not seconds:
        return {"n": 0}
    values = [1000 * value for value in seconds]
    last = quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]
    return {"p50_ms": round(median(values), 2), "p99_ms": round(last, 2), "n": len(values)}


def rate(size: float, seconds: float) -> float:
    """GB/s."""
    return round(size / seconds / GB, 2)


def most(values: Sequence[int | None], awake: int | None) -> int | None:
    """The most bytes that NVML saw of who sleeps. None where it did not see them awake either: in another PID
    namespace it lists nobody whom we know, and that is no proof."""
    known = [value for value in values if value is not None]
    return max(known) if known and awake else None


def drift(values: Sequence[float]) -> float | None:
    """Median of the last quarter over that of the second one, less 1; None for fewer than 8. The first quarter is
    warming up."""
    if len(values) < 8:
        return None
    quarter = len(values) // 4
    before, after = median(values[quarter : 2 * quarter]), median(values[-quarter:])
    if not before:
        return 0.0 if not after else float("inf")
    return round(after / before - 1, 4)
