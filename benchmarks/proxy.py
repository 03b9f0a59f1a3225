"""`python -m benchmarks.proxy [--json] [--quick]`: what our two proxies cost a request, beside others.

One upstream for all, which answers a chat completion at once. Each proxy has one process (one thread that works) on a
core of its own; load and upstream are one program on the other core that never sleeps and is faster than any of them.
Ours are the real programs, `python -m sidecar` (its model awake: state check, accounting and metrics at work) and
`python -m gateway` (it reads the body for the model's name). All are measured in turns, round after round, and each
figure is the median of the rounds' own ratios or differences: what else the machine does then weighs on all alike.

Requests per core is requests per second of CPU time that the proxy used under 32 clients. Requests per second of wall
time are told beside it: on a quiet machine both say the same, on a busy one others take their part of the core and of
the caches. `best_rps_vs_nginx` compares the best round of each, the least disturbed ones.
Added latency is that of one client alone, less the same without a proxy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.proxy_bed import load, setup
from benchmarks.proxy_bed.bed import OTHER_CORE, PROXY_CORE, Bed, cores, until
from benchmarks.proxy_bed.subject import Subject
from tests.testbeds.programs import Missing

OURS = ("sidecar", "gateway")
PEERS = ("nginx", "haproxy", "aiohttp", "starlette")
CLIENTS = 32
STORM_CLIENTS = 5000
STREAMS, STREAM_INTERVAL = 64, 0.02  # seconds between two chunks: 50 tokens a second
OPEN_STREAMS = 1000


@dataclass
class Findings:
    """All rounds of one proxy."""

    full: list[load.Run] = field(default_factory=list)
    added_p50: list[float] = field(default_factory=list)
    added_p99: list[float] = field(default_factory=list)
    #: CPU microseconds per chunk.
    sse: list[float] = field(default_factory=list)
    rss: float = 0.0


def median(values: Sequence[float]) -> float:
    """Of no values: 0."""
    return statistics.median(values) if values else 0.0


class Benchmark:
    """The measurements, in order."""

    def __init__(self, bed: Bed, rounds: int, seconds: float) -> None:
        self._bed, self._rounds, self._seconds = bed, rounds, seconds
        self.found = {name: Findings() for name in bed.subjects}
        self.storm: dict[str, Any] = {}

    def _peers_of_round(self, number: int) -> list[Subject]:
        """Ours and nginx in each round, the others in every second one."""
        subjects = list(self._bed.subjects.values())
        return [s for s in subjects if s.name in (*OURS, "nginx") or number % 2 == 0]

    def run_storm(self) -> None:
        """Clients all at once on the sleeping model; needs it asleep."""
        say(f"{STORM_CLIENTS} clients ask the sleeping model at once")
        subject = self._bed.subjects["sidecar"]
        began = time.monotonic()
        answered = load.storm(subject.port, STORM_CLIENTS, 60.0)
        self.storm = {
            "clients": STORM_CLIENTS,
            "answered": answered,
            "wakes": int(self._bed.metric("gthread_sidecar_wake_duration_seconds_count")),
            "joined_the_wake": int(self._bed.metric("gthread_sidecar_wake_deduplications_total")),
            "seconds": round(time.monotonic() - began, 2),
        }
        until(lambda: self._bed.status()["queue"]["inFlight"] == 0, "the storm is over")

    def run_requests(self) -> None:
        """32 clients, then one."""
        for number in range(self._rounds):
            say(f"requests, round {number + 1} of {self._rounds}")
            subjects = self._peers_of_round(number)
            for subject in subjects:
                run = load.measure(self._bed.upstream, subject.port, CLIENTS, self._seconds, subject)
                self.found[subject.name].full.append(run)
            direct = load.measure(self._bed.upstream, self._bed.upstream, 1, 0.7)
            for subject in subjects:
                run = load.measure(self._bed.upstream, subject.port, 1, 0.7, subject)
                found = self.found[subject.name]
                found.added_p50.append(run.p50 - direct.p50)
                found.added_p99.append(run.p99 - direct.p99)

    def run_streams(self) -> None:
        """CPU of each chunk of 64 streams at 50 chunks a second."""
        for number in range(self._rounds):
            say(f"streams, round {number + 1} of {self._rounds}")
            for subject in self._peers_of_round(number):
                run = load.measure(
                    self._bed.upstream, subject.port, STREAMS, self._seconds, subject, interval=STREAM_INTERVAL
                )
                self.found[subject.name].sse.append(1e6 / run.per_cpu_second)

    def run_memory(self) -> None:
        """Resident memory with 1,000 open streams that have all answered."""
        for subject in self._bed.subjects.values():
            say(f"{OPEN_STREAMS} open streams through {subject.name}")
            with load.streams(subject.port, OPEN_STREAMS, 1.0) as opened:
                end = time.monotonic() + 20
                while opened.chunks < 2 * OPEN_STREAMS and time.monotonic() < end:
                    opened.read(0.5)
                if opened.chunks < OPEN_STREAMS:
                    raise RuntimeError(f"{subject.name} passed {opened.chunks} chunks of {OPEN_STREAMS} streams")
                self.found[subject.name].rss = subject.rss()

    # figures

    def _ratio(self, name: str, value: Callable[[Findings], Sequence[float]]) -> float:
        """Median over the rounds of this proxy's value by nginx's of the same round."""
        mine, nginx = value(self.found[name]), value(self.found["nginx"])
        step = 1 if len(mine) == len(nginx) else 2
        return median([a / b for a, b in zip(mine, nginx[::step], strict=True)])

    def figures(self, name: str) -> dict[str, float]:
        """The figures of one proxy."""
        found = self.found[name]
        return {
            "rps_vs_nginx": round(self._ratio(name, lambda f: [run.per_cpu_second for run in f.full]), 3),
            "best_rps_vs_nginx": round(
                max(run.per_cpu_second for run in found.full)
                / max(run.per_cpu_second for run in self.found["nginx"].full),
                3,
            ),
            "wall_rps_vs_nginx": round(self._ratio(name, lambda f: [run.rps for run in f.full]), 3),
            "rps": round(median([run.rps for run in found.full])),
            "cpu_us_per_request": round(median([1e6 / run.per_cpu_second for run in found.full]), 1),
            "core_used": round(median([run.cpu / run.seconds for run in found.full]), 2),
            "added_p50_ms": round(median(found.added_p50), 3),
            "added_p99_ms": round(median(found.added_p99), 3),
            "p99_ms_at_32": round(median([run.p99 for run in found.full]), 2),
            "sse_cpu_us_per_chunk": round(median(found.sse), 2),
            "sse_cpu_vs_nginx": round(self._ratio(name, lambda f: f.sse), 3),
            "rss_mb_1000_streams": round(found.rss, 1),
        }

    def result(self) -> dict[str, Any]:
        """The object of the last line."""
        if any(not found.full or not found.sse for found in self.found.values()):
            return {"rounds": {name: vars(found) for name, found in self.found.items()}}  # of --only, as measured
        peers = {name: self.figures(name) for name in self.found}
        named = ("rps_vs_nginx", "added_p50_ms", "added_p99_ms", "sse_cpu_us_per_chunk", "sse_cpu_vs_nginx")
        result: dict[str, Any] = {}
        for prefix, name in (("", "sidecar"), ("gateway_", "gateway")):
            result |= {prefix + key: peers[name][key] for key in (*named, "rss_mb_1000_streams")}
        one_wake = self.storm["wakes"] == 1
        result["clients_one_wake"] = self.storm["answered"] if one_wake else 0
        return {**result, "storm": self.storm, "peers": peers}


def table(peers: dict[str, dict[str, float]]) -> str:
    """For people."""
    columns = (
        ("", "", "{}"),
        ("rps_vs_nginx", "requests/CPU s,\nvs nginx", "{:.2f}"),
        ("best_rps_vs_nginx", "best\nround", "{:.2f}"),
        ("wall_rps_vs_nginx", "requests/s,\nvs nginx", "{:.2f}"),
        ("rps", "requests/s", "{:,.0f}"),
        ("cpu_us_per_request", "CPU µs per\nrequest", "{:.1f}"),
        ("core_used", "of its\ncore", "{:.0%}"),
        ("added_p50_ms", "added\np50 ms", "{:.3f}"),
        ("added_p99_ms", "added\np99 ms", "{:.3f}"),
        ("sse_cpu_us_per_chunk", "CPU µs per\nSSE chunk", "{:.1f}"),
        ("sse_cpu_vs_nginx", "vs\nnginx", "{:.2f}"),
        ("rss_mb_1000_streams", "MB with\n1,000 streams", "{:.0f}"),
    )
    heads = [title.split("\n") for _, title, _ in columns]
    rows = [[[*head, ""][line] for head in heads] for line in (0, 1)]
    for name, values in peers.items():
        rows.append([name, *(form.format(values[key]) for key, _, form in columns[1:])])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def say(text: str) -> None:
    """Progress, for a person who waits."""
    print(f"benchmarks.proxy: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """0; 2 when this machine cannot run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print only the last line, one JSON object")
    parser.add_argument("--quick", action="store_true", help="ours and nginx, three rounds: about a minute")
    parser.add_argument("--only", default="", help="of storm,requests,streams,memory: for work on one of them")
    options = parser.parse_args()
    if not {PROXY_CORE, OTHER_CORE} <= cores():
        print("benchmarks.proxy: needs two cores: one for the proxy, one for load and upstream", file=sys.stderr)
        return 2
    try:
        setup.program("nginx")
        setup.load_program()
    except Missing as missing:
        print(f"benchmarks.proxy: {missing}", file=sys.stderr)
        return 2
    began = time.monotonic()
    steps = options.only.split(",") if options.only else ["storm", "requests", "streams", "memory"]
    with Bed(() if options.quick else PEERS[1:]).running() as bed:
        benchmark = Benchmark(bed, rounds=3 if options.quick else 7, seconds=1.2)
        if "storm" not in steps:
            load.storm(bed.subjects["sidecar"].port, 1, 30.0)  # wakes it
        for step in steps:
            getattr(benchmark, f"run_{step}")()
        result = benchmark.result()
    if not options.json and "peers" in result:
        print(table(result["peers"]))
        if benchmark.storm:
            print(
                "\n{answered:,} of {clients:,} clients answered by {wakes} wake, {seconds} s".format(**benchmark.storm)
            )
        print(f"\n{time.monotonic() - began:.0f} s")
    print(json.dumps(result, default=vars))
    return 0


if __name__ == "__main__":
    sys.exit(main())
