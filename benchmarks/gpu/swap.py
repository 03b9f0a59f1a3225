"""Part f. Two models that cannot be awake together, swapped by requests under `greenthread up`; memory all along."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from benchmarks.gpu.engine import find_vllm, make_model
from benchmarks.gpu.launched import Failed
from benchmarks.gpu.nvml import Nvml
from benchmarks.gpu.part import Case, Clock, Options, Row
from benchmarks.gpu.stats import GB, spread
from greenthread.kube.blocking import Client
from greenthread.kube.config import load_config
from greenthread.kube.errors import KubeError
from greenthread.kube.resources import MODELS, PODS
from greenthread.names import API_VERSION, DEFAULT_NAMESPACE, LABEL_MODEL
from localcluster.supervisor.process import die_with_parent

NAMES = ("first", "second")
ENGINE = "vllm"
"""The container."""
WAYS = {"ours": ("--sleep-backend", "greenthread", "--checkpoint"), "cumem": ("--sleep-backend", "cumem")}
"""Of `greenthread up`."""
EVERY = 0.1
"""Seconds between two looks at the memory."""
SWAPS = 20
LARGE_CARD = 40 * GB
"""Bytes from which the 8B is taken, and not the 1B."""
READY, ANSWER = 280.0, 120.0


def cases(options: Options, clock: Clock, notes: Row) -> list[Case]:
    nvml, vllm = Nvml(), find_vllm()
    size = "8B" if nvml.total() >= LARGE_CARD else "1B"
    folder = options.work / "models" / size
    notes["model"] = f"{size}, twice"

    def measure(name: str, arguments: Sequence[str]) -> Row:
        make_model(vllm, size, folder)
        # the launcher's `python3` has to be vLLM's
        os.environ["PATH"] = os.pathsep.join([str(Path(vllm.python).parent), os.environ["PATH"]])
        return swap(str(folder), options.work / f"up-{name}", nvml, clock, arguments)

    return [Case(name, 200, partial(measure, name, arguments)) for name, arguments in WAYS.items()]


def swap(model: str, state: Path, nvml: Nvml, clock: Clock, arguments: Sequence[str] = ()) -> Row:
    """`arguments`: more for `greenthread up`. Failed when a request is not answered, or nothing gets ready."""
    state.mkdir(parents=True, exist_ok=True)
    manifest = state / "models.yaml"
    manifest.write_text(yaml.safe_dump_all(_model(name, model) for name in NAMES))
    with _up(["--state-dir", str(state), "-f", str(manifest), *arguments]) as url, Timeline(nvml) as timeline:
        client = Client(load_config(state / "kubeconfig"))
        began = time.monotonic()
        _until(lambda: _ready(client), "both Models are Ready", min(READY, clock.left() - 30))
        row: Row = {"ready_s": round(time.monotonic() - began, 1), "engine": _engine(client)}
        timeline.mark("ready")
        answers: dict[str, set[str]] = {name: set() for name in NAMES}
        found: list[dict[str, float]] = []
        for number in range(SWAPS):
            if clock.left() < 25:
                row["cut"] = True
                break
            name = NAMES[number % 2]
            timeline.mark(f"ask {name}")
            seconds, text = ask(url, name)
            timeline.mark(f"answer {name}")
            answers[name].add(text)
            found.append(seconds)
    swaps = found[1:]  # the first finds an empty GPU
    row["first_token"] = spread([seconds["first_token"] for seconds in swaps])
    row["preempt_and_claim"] = spread([seconds["queue"] for seconds in swaps if "queue" in seconds])
    row["wake"] = spread([seconds["wake"] for seconds in swaps if "wake" in seconds])
    row["same_answer"] = all(len(texts) == 1 for texts in answers.values() if texts)
    return row | {"swaps": len(swaps), "timeline": timeline.row()}


def ask(url: str, model: str) -> tuple[dict[str, float], str]:
    """Seconds until the first token, and of the wait for the turn and of the wake as the sidecar has it; the text."""
    body = {"model": model, "prompt": "def read_file(path):", "max_tokens": 16, "temperature": 0.0, "stream": True}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER)
    began, first, text = time.perf_counter(), 0.0, []
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Failed(f"{model} answered {answer.status}: {answer.read()[:500].decode(errors='replace')}")
        timing = answer.headers.get_all("Server-Timing") or []
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - began
                text += [choice["text"] for choice in json.loads(line[6:]).get("choices", ())]
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"{model} did not answer: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if not first:
        raise Failed(f"{model} streamed no token")
    parts = re.findall(r"(\w+);dur=([\d.]+)", ", ".join(timing))
    return {"first_token": first} | {name: float(value) / 1000 for name, value in parts}, "".join(text)


class Timeline:
    """Memory by model, every 100 ms in a thread of its own, while the `with` block runs."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml, self._over = nvml, threading.Event()
        self._began = time.monotonic()
        self._seconds: list[float] = []
        self._mib: list[dict[str, float | None]] = []
        self._used: list[float] = []
        self._marks: list[tuple[float, str]] = []
        self._owners: dict[int, str] = {}
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="timeline", daemon=True)

    def __enter__(self) -> Timeline:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def mark(self, what: str) -> None:
        self._marks.append((self._now(), what))

    def row(self) -> Row:
        """Columns, one number a look; null where NVML knows a process and not its bytes."""
        names = sorted({name for look in self._mib for name in look})
        return {
            "every_s": EVERY,
            "t_s": self._seconds,
            "device_used_mib": self._used,
            "mib": {name: [look.get(name, 0.0) for look in self._mib] for name in names},
            "marks": [{"t_s": seconds, "what": what} for seconds, what in self._marks],
        } | ({"error": str(self._failed)} if self._failed else {})

    def _run(self) -> None:
        try:
            while not self._over.wait(EVERY):
                look: dict[str, float | None] = {}
                for pid, used in self._nvml.by_process().items():
                    owner = self._owner(pid)
                    before = look.get(owner, 0.0)
                    look[owner] = None if used is None or before is None else round(before + used / 2**20, 1)
                self._seconds.append(self._now())
                self._mib.append(look)
                self._used.append(round(self._nvml.used() / 2**20, 1))
        except Exception as error:  # told with the row: the swaps are worth something without it
            self._failed = error

    def _owner(self, pid: int) -> str:
        """The model that the process, or who started it, serves."""
        if pid not in self._owners:
            self._owners[pid] = _served(pid) or f"pid {pid}"
        return self._owners[pid]

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 3)


def _served(pid: int) -> str:
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return ""
        if "--served-model-name" in words:
            return next((name for name in NAMES if name in words), "")
        pid = parent
    return ""


@contextmanager
def _up(arguments: Sequence[str]) -> Iterator[str]:
    """A running `greenthread up`: the models' URL. Failed."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "localcluster.up", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=die_with_parent(signal.SIGTERM),
    ) as process:
        said: list[str] = []
        assert process.stdout is not None
        threading.Thread(target=lambda out: said.extend(out), args=(process.stdout,), daemon=True).start()
        try:
            _until(
                lambda: any("another terminal" in line for line in said) or process.poll() is not None, "it is up", 60
            )
            address = next((line.split()[1] for line in said if line.strip().startswith("models:")), "")
            if not address:
                raise Failed(f"greenthread up did not start: {''.join(said)[-1000:]}")
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _model(name: str, model: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "metadata": {"name": name, "namespace": DEFAULT_NAMESPACE},
        "spec": {
            "modelName": model,
            "gpuMemoryUtilization": "0.60",
            "extraArgs": ["--max-model-len", "2048"],
            "staging": {"pinned": True},
            # only a request decides who is awake, and at once
            "fairness": {"minRuntime": "0s", "maxWaitTime": "0s", "yieldAfter": "0s"},
        },
    }


def _ready(client: Client) -> bool:
    try:
        models = client.list(MODELS, DEFAULT_NAMESPACE).items
    except KubeError:
        return False
    return len(models) == len(NAMES) and all(_condition(model) == "True" for model in models)


def _condition(model: Mapping[str, Any]) -> str:
    conditions = model.get("status", {}).get("conditions", ())
    return next((str(c["status"]) for c in conditions if c["type"] == "Ready"), "")


def _engine(client: Client) -> list[str]:
    """The words that an engine is started with, as the controller wrote them."""
    pod = client.list(PODS, DEFAULT_NAMESPACE, f"{LABEL_MODEL}={NAMES[0]}").items[0]
    return next((list(c.get("args", ())) for c in pod["spec"]["containers"] if c["name"] == ENGINE), [])


def _until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
