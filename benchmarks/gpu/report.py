"""What the parts found, beside the targets: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks._table import table
from benchmarks.gpu.checkpoint import ASLEEP
from benchmarks.gpu.memory import CLASS_20B
from benchmarks.gpu.part import PARTS

Row = dict[str, Any]
Results = Mapping[str, Row]

OURS = "ours"
MOST = 8
"""Values of a series that are shown to people."""
SAME = ("same_content", "changed_bit_came_back", "replays_right", "same_answer")
STEADY = 0.05
"""Of latency or memory, between the second and the last quarter of the cycles."""


def targets(parts: Results) -> list[Row]:
    """Each with what was measured, null where nothing was."""
    ceilings = [row["h2d_gb_s"] for name, row in _cases(parts, "a") if name.startswith("ceiling") and "h2d_gb_s" in row]
    ceiling = max(ceilings, default=None)
    wakes = _all(parts, "b", "wake_gb_s")
    sleeps = [value["p99_ms"] for value in _all(parts, "b", "sleep") if value.get("n")]
    left = _get(parts, "c", ASLEEP, "asleep_bytes")
    if left is None:  # NVML does not list processes here: what the whole device has more than without them
        left = _get(parts, "c", ASLEEP, "asleep_device_bytes")
    raw, disk = _get(parts, "d", "raw", "read_gb_s"), _get(parts, "d", "wake", "wake_gb_s")
    engines = [row for name, row in _cases(parts, "e") if name.endswith(OURS)]
    engine_left = [row["asleep_bytes"] for row in engines if row.get("asleep_bytes") is not None]
    # every pair of measurements counts, so the worst one is told
    drifts = [abs(value) for row in engines for value in (row.get("drift") or {}).values() if value is not None]
    same = [value for _, value in _same(parts)]
    return [
        _target("wake, share of pinned H2D", ">= 0.90", _share(min(wakes, default=None), ceiling), 0.9, least=True),
        _target("wake of 13 GB, ms", "<= 300", _get(parts, "b", CLASS_20B, "wake", "p50_ms"), 300),
        _target("sleep but the first, p99 ms", "<= 50", max(sleeps, default=None), 50),
        _target("bytes by NVML after the checkpoint", "0", left, 0),
        _target("bytes by NVML of vllm serve asleep", "0", max(engine_left, default=None), 0),
        _target("wake from disk, share of raw read", ">= 0.85", _share(disk, raw), 0.85, least=True),
        _target("drift over the cycles", f"<= {STEADY}", max(drifts, default=None), STEADY),
        _target("wakes and restores that changed content", "0", same.count(False) if same else None, 0),
    ]


def _target(name: str, target: str, measured: float | None, bound: float, least: bool = False) -> Row:
    met = None if measured is None else measured >= bound if least else measured <= bound
    return {"name": name, "target": target, "measured": measured, "met": met}


def _share(part: float | None, whole: float | None) -> float | None:
    return round(part / whole, 3) if part is not None and whole else None


def _cases(parts: Results, letter: str) -> Iterator[tuple[str, Row]]:
    yield from parts.get(letter, {}).get("cases", {}).items()


def _get(parts: Results, letter: str, case: str, *keys: str) -> Any:
    found: Any = dict(_cases(parts, letter)).get(case)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _all(parts: Results, letter: str, key: str) -> list[Any]:
    """Of the cases that use the product's own settings."""
    return [row[key] for name, row in _cases(parts, letter) if "," not in name and row.get(key) is not None]


def _same(found: Any) -> Iterator[tuple[str, bool]]:
    """Every word on whether what came back is what it was, wherever it stands."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            if key in SAME and value is not None:
                yield key, value
            else:
                yield from _same(value)


def text(gpu: Row, parts: Results, found: list[Row]) -> str:
    """Tables for people."""
    lines = [gpu.get("missing") or f"{gpu.get('name')}, driver {gpu.get('driver')}, {gpu.get('memory_gib')} GiB"]
    for letter, part in PARTS.items():
        result = parts.get(letter)
        if result is None:
            continue
        lines += ["", f"{letter}  {part.title}"]
        for key, what in (("skipped", "not measured"), ("error", "failed")):
            if key in result:
                lines.append(f"   {what}: {result[key]}")
        for name, row in _cases(parts, letter):
            lines += [f"   {name}", *(f"      {line}" for line in _lines(row))]
        if result.get("cut"):
            lines.append("   its time was over before all was measured: the same command with --out goes on")
    rows = [["target", "wanted", "measured", ""]]
    for target in found:
        measured = "not measured" if target["measured"] is None else str(target["measured"])
        rows.append([target["name"], target["target"], measured, {True: "met", False: "MISSED"}.get(target["met"], "")])
    return "\n".join([*lines, "", *table(rows)])


def _lines(row: Row) -> Iterator[str]:
    flat = {}
    for name, value in row.items():
        if isinstance(value, dict):
            yield f"{name}: " + ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
        else:
            flat[name] = value
    if flat:
        yield ", ".join(f"{name} {_short(value)}" for name, value in flat.items())


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) + ")"
    if isinstance(value, list) and len(value) > MOST:
        return f"[{len(value)} values]"  # the JSON has them
    return f"{value:g}" if isinstance(value, float) else str(value)
