"""Part e. Real `vllm serve` with models made here: our sleep backend and launcher beside vLLM's own backend."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.launched import Failed, Launched
from benchmarks.gpu.nvml import Nvml
from benchmarks.gpu.part import Case, Clock, Options, Row, Skip
from benchmarks.gpu.stats import GB, GIB, drift, most, spread

ROOT = Path(__file__).parents[2]
MODELS = {"1B": 2, "8B": 16, "20B-class": 13}
"""GB of weights of each."""
CYCLES = 100
CYCLES_SECONDS = 150.0
"""Of one case at most."""
BOOT = 280.0
ANSWER = 120.0
PROMPT = "def read_file(path):"
TOKENS = 24


@dataclass(frozen=True)
class Way:
    """One way to sleep. `off`: with the launcher's checkpoint."""

    name: str
    arguments: Sequence[str]
    level: int
    off: bool = False

    @property
    def wakes(self) -> Sequence[tuple[str, Any]]:
        """The control calls, with their bodies."""
        if self.level == 2 and not self.off:
            reload = ("/collective_rpc", {"method": "reload_weights"})
            return ("/wake_up?tags=weights", None), reload, ("/wake_up?tags=kv_cache", None)
        return (("/wake_up", None),)


WAYS = (
    Way("ours", ("--enable-sleep-mode", "--sleep-mode-backend", "greenthread"), 1, off=True),
    Way("cumem level 1", ("--enable-sleep-mode",), 1),
    Way("cumem level 2", ("--enable-sleep-mode",), 2),
)


def cases(options: Options, clock: Clock, notes: Row) -> list[Case]:
    nvml, vllm = Nvml(), find_vllm()
    plugin(options.work)
    notes["cycles"] = f"{CYCLES}, or as many as {CYCLES_SECONDS:.0f} s hold"
    notes["20B-class"] = "13 GB in bfloat16: the memory of 20B parameters in mxfp4, not that format"
    found = []
    for model, size in MODELS.items():
        for way in WAYS:
            measure = partial(bench, model, way, options, clock, nvml, vllm)
            found.append(Case(f"{model}, {way.name}", 90 + 3 * size, measure))
    return found


@dataclass(frozen=True)
class Vllm:
    """How it is run here."""

    command: Sequence[str]
    python: str
    env: dict[str, str] = field(default_factory=dict)


def find_vllm() -> Vllm:
    """Skip where there is none on the PATH."""
    program = shutil.which("vllm")
    if program is None:
        raise Skip("there is no `vllm` on the PATH")
    python = Path(program).resolve().with_name("python")  # what is on the PATH may be a link
    if not python.exists():
        raise Skip(f"there is no python beside {program}: vLLM has to be installed in an environment of its own")
    return Vllm((program,), str(python))


def bench(model: str, way: Way, options: Options, clock: Clock, nvml: Nvml, vllm: Vllm) -> Row:
    """One row: boot, first sleep, cycles."""
    free = shutil.disk_usage(options.work if options.work.exists() else Path("/")).free
    folder = options.work / "models" / model
    needed = MODELS[model] * GB
    if not folder.exists() and needed + 4 * GIB > free:
        return {"left_out": f"{options.work} has {free / GB:.0f} GB free for a model of {needed / GB:.0f} GB"}
    card = nvml.total()
    if needed * 1.15 + 4 * GIB > card:
        return {"left_out": f"the card has {card / GB:.0f} GB"}
    make_model(vllm, model, folder)
    log = options.work / f"{model}-{way.name.replace(' ', '-')}.log"
    with Engine(vllm, folder, way, options.work, log) as engine:
        began = time.perf_counter()
        engine.ready(min(BOOT, clock.left() - 20))
        row: Row = {"boot_s": round(time.perf_counter() - began, 1)}
        warm = [engine.ask()[0] for _ in range(3)]
        row["first_token_awake_ms"] = round(1000 * min(warm), 2)
        row["answer"] = answer = engine.ask()[1]
        row["awake_bytes"] = nvml.of(engine.pids())
        cycles = Cycles(engine, way, nvml, answer)
        row |= cycles.first()
        end = time.monotonic() + min(CYCLES_SECONDS, clock.left() - 20)
        while len(cycles.wake) < CYCLES and time.monotonic() < end:
            cycles.once()
        row |= cycles.row()
    return row


def make_model(vllm: Vllm, name: str, folder: Path) -> None:
    """In vLLM's Python. Failed."""
    command = [vllm.python, "-m", "benchmarks.gpu.make_model", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"the model {name} could not be made: {done.stderr.strip()[-500:]}")


class Engine:
    """A running `vllm serve` under our launcher."""

    def __init__(self, vllm: Vllm, model: Path, way: Way, work: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = [*vllm.command, "serve", str(model), "--served-model-name", "model", "--max-model-len", "2048"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *way.arguments]
        env = os.environ | {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CACHE_ROOT": str(work / "vllm-cache"),  # compiled once for all boots
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": str(plugin(work)),  # the launcher's too, and vLLM only uses it when told
        }
        if way.off:
            env["GREENTHREAD_PINNED"] = "1"
        self._launched = Launched(vllm.python, command, log, env | vllm.env, cwd=work)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._launched.__exit__(*error)

    def pids(self) -> list[int]:
        """The launcher's too."""
        return [*self._launched.pids(), self._launched.process.pid]

    def ready(self, seconds: float) -> None:
        """Failed when it ends, or does not answer in that time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._launched.process.poll() is not None:
                raise Failed(f"vllm ended with {self._launched.process.returncode}; {self._launched.tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)
        raise Failed(f"vllm does not answer after {seconds:.0f} s; {self._launched.tail()}")

    def control(self, target: str, body: Any = None) -> float:
        """Seconds of a control call that must succeed. Failed."""
        began = time.perf_counter()
        self._post(target, body).read()
        return time.perf_counter() - began

    def launcher(self, call: str) -> float:
        return self._launched.call(call, ANSWER)[0]

    def ask(self) -> tuple[float, str]:
        """Seconds to the first token of a greedy answer, and the whole of it. Failed."""
        body = {"model": "model", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0, "stream": True}
        began, first, text = time.perf_counter(), 0.0, []
        answer = self._post("/v1/completions", body)
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            first = first or time.perf_counter() - began
            chunk = json.loads(line.removeprefix(b"data: "))
            text += [choice["text"] for choice in chunk.get("choices", ())]
        if not first:
            raise Failed(f"vllm streamed no token; {self._launched.tail()}")
        return first, "".join(text)

    def _post(self, target: str, body: Any) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER)
        try:
            text = None if body is None else json.dumps(body)
            connection.request("POST", target, text, {"Content-Type": "application/json", "Connection": "close"})
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(
                f"vllm did not answer {target}: {error or type(error).__name__}; {self._launched.tail()}"
            ) from None
        if answer.status != 200:
            raise Failed(f"vllm answered {target} with {answer.status}: {answer.read()[:500].decode(errors='replace')}")
        return answer

    def rss(self) -> int:
        """Bytes of host memory of all its processes."""
        pages = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def plugin(work: Path) -> Path:
    """vllm_sleep as the chart delivers it to vLLM's image. Skip where GreenThread is not installed."""
    from importlib.metadata import PackageNotFoundError

    from vllm_sleep.deliver import deliver

    folder = work / "plugin"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        deliver(folder)
    except PackageNotFoundError:
        raise Skip("GreenThread is not installed in this Python: pip install -e .") from None
    return folder


class Cycles:
    """Sleeps and wakes of one engine, and what they left."""

    def __init__(self, engine: Engine, way: Way, nvml: Nvml, answer: str) -> None:
        self._engine, self._way, self._nvml, self._answer = engine, way, nvml, answer
        self.sleep: list[float] = []
        self.checkpoint: list[float] = []
        self.restore: list[float] = []
        self.wake: list[float] = []
        self.first_token: list[float] = []
        self.asleep: list[int | None] = []
        self.awake: list[int | None] = []
        self.rss: list[int] = []
        self._same = True

    def first(self) -> Row:
        """The first one, which makes the copies: told apart."""
        self.once()
        found: dict[str, list[float]] = {
            "sleep": self.sleep,
            "checkpoint": self.checkpoint,
            "restore": self.restore,
            "wake": self.wake,
            "wake_to_first_token": self.first_token,
        }
        return {f"first_{name}_s": round(seconds.pop(), 3) for name, seconds in found.items() if seconds}

    def once(self) -> None:
        engine, way = self._engine, self._way
        self.sleep.append(engine.control(f"/sleep?level={way.level}&mode=abort"))
        if way.off:
            self.checkpoint.append(engine.launcher("checkpoint"))
        self.asleep.append(self._nvml.of(engine.pids()))
        began = time.perf_counter()
        if way.off:
            self.restore.append(engine.launcher("restore"))
        for target, body in way.wakes:
            engine.control(target, body)
        self.wake.append(time.perf_counter() - began)
        first, answer = engine.ask()
        self.first_token.append(self.wake[-1] + first)
        self._same = self._same and answer == self._answer
        self.awake.append(self._nvml.of(engine.pids()))
        self.rss.append(engine.rss())

    def row(self) -> Row:
        known = [value for value in self.awake if value is not None]
        return {
            "sleep": spread(self.sleep),
            "checkpoint": spread(self.checkpoint),
            "restore": spread(self.restore),
            "wake": spread(self.wake),
            "wake_to_first_token": spread(self.first_token),
            "asleep_bytes": most(self.asleep, next(iter(self.awake), None)),
            "awake_bytes_last": known[-1] if known else None,
            "host_rss_bytes": [self.rss[0], self.rss[-1]],
            "same_answer": self._same,
            "cycles": len(self.wake),
            "drift": {
                "sleep": drift(self.sleep),
                "wake": drift(self.wake),
                "awake_bytes": drift(known),
                "host_rss_bytes": drift(self.rss),
            },
        }
