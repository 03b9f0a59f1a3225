"""What can be set on the simulated engine, by environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Settings:
    """Speeds, times and sizes. Each field is read from `GREENTHREAD_SIM_` and its name in capitals."""

    link_gbps: float = 55.0
    """Host to device, for each GPU, in 10⁹ bytes a second: a wake from host memory."""
    disk_gbps: float = 20.0
    """Disk to device in 10⁹ bytes a second, shared by the engine's GPUs: a boot, and `reload_weights`."""
    boot_seconds: float = 2.0
    """What a boot takes beside loading the weights."""
    sleep_seconds: float = 0.09
    """What a sleep takes."""
    left_bytes: int = 0
    """What stays on each GPU while the engine sleeps, in bytes."""
    ttft_ms: float = 30.0
    """From a request's start to its first token."""
    token_ms: float = 10.0
    """From one token to the next."""
    faults: str = field(default="")
    """Faults of the boot: see `faults.py`."""


def from_environment(environment: dict[str, str] | None = None) -> Settings:
    """The settings. ValueError names the variable that is not a number or negative."""
    source = os.environ if environment is None else environment
    found: dict[str, float | int | str] = {}
    for item in fields(Settings):
        name = f"GREENTHREAD_SIM_{item.name.upper()}"
        text = source.get(name, "")
        if not text:
            continue
        if item.type == "str":
            found[item.name] = text
            continue
        try:
            number = int(text) if item.type == "int" else float(text)
        except ValueError:
            number = -1
        if not 0 <= number < float("inf") or (number == 0 and item.name.endswith("_gbps")):
            raise ValueError(f"{name}={text!r}: write a number of at least 0 (above 0 for a speed)")
        found[item.name] = number
    return Settings(**found)  # type: ignore[arg-type]
