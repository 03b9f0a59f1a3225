"""`python3 -m vllm_sleep.launch ENGINE ARGUMENT...`: runs the engine, checkpoints its processes when the sidecar asks.

It is the engine's parent, because a process may always stop its own descendants: so the pod needs neither
CAP_SYS_PTRACE nor a host without YAMA. It serves one line of JSON a connection on the socket `launcher.sock` in
$RUN_DIR:

    {"call": "state"}       {"checkpoint": true}, or false with the "reason"
    {"call": "checkpoint"}  {"processes": 2, "seconds": 0.1}: they hold nothing of a GPU any more
    {"call": "restore"}     the same: they can be used again, also when they never were checkpointed

or {"error": "…", "lost": false}; lost: the engine has to be started afresh.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vllm_sleep.checkpoint import MODULE, Checkpointer, CheckpointError

SOCKET = "launcher.sock"
_MOST = 4096  # bytes of a request
_IDLE = 10.0  # seconds a client may take to say what it wants
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Helper:
    """Answers the calls for the descendants of this process. The driver is loaded at the first one that needs it."""

    def __init__(self, module: str = "cuda.bindings.driver") -> None:
        self._module = module
        self._checkpointer: Checkpointer | None = None
        self._one_at_a_time = threading.Lock()

    def answer(self, request: Any) -> dict[str, Any]:
        call = request.get("call") if isinstance(request, dict) else None
        if call not in ("state", "checkpoint", "restore"):
            return {"error": f"no such call: {call!r}", "lost": False}
        with self._one_at_a_time:
            try:
                self._checkpointer = self._checkpointer or Checkpointer(self._module)
                if call == "state":
                    return {"checkpoint": True}
                began = time.monotonic()
                pids = self._checkpointer.processes(descendants(os.getpid()))
                if not pids:
                    raise CheckpointError("the engine has no process that uses CUDA")
                getattr(self._checkpointer, call)(pids)
                return {"processes": len(pids), "seconds": time.monotonic() - began}
            except CheckpointError as error:
                if call == "state":
                    return {"checkpoint": False, "reason": str(error)}
                return {"error": str(error), "lost": error.lost}


def serve(path: Path, helper: Helper) -> socketserver.BaseServer:
    """Listens, and answers in threads of its own."""

    class Handler(socketserver.StreamRequestHandler):
        timeout = _IDLE

        def handle(self) -> None:
            try:
                request = json.loads(self.rfile.readline(_MOST))
            except (ValueError, RecursionError, OSError):
                request = None
            answer = helper.answer(request)
            with contextlib.suppress(OSError):  # who has gone needs none
                self.wfile.write(json.dumps(answer).encode() + b"\n")

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True
        request_queue_size = 64

    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH)
    try:  # a socket's address has room for 107 characters only
        server = Server(f"/proc/self/fd/{folder}/{path.name}", Handler)
    finally:
        os.close(folder)
    path.chmod(0o666)  # only the pod's own containers see the volume, and they may run as different users
    threading.Thread(target=server.serve_forever, name="launcher", daemon=True).start()
    return server


def descendants(pid: int) -> list[int]:
    """Of all its generations, this one left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in ("Z", "X"):
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found += (born := children.get(todo.pop(), []))
        todo += born
    return found


def _wait(pid: int) -> int:
    """Exit status of this child, once it ends. Meanwhile the orphans that became ours are not left as zombies."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def main(command: Sequence[str]) -> int:
    if not command:
        print("usage: python3 -m vllm_sleep.launch ENGINE ARGUMENT...", file=sys.stderr)
        return 2
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # or who loses its parent would no longer be a descendant
    run_dir = os.environ.get("RUN_DIR")
    if not run_dir:
        print("RUN_DIR is not set: the folder for the launcher's socket", file=sys.stderr)
        return 1
    try:
        server = serve(Path(run_dir) / SOCKET, Helper(os.environ.get(MODULE) or "cuda.bindings.driver"))
    except OSError as error:
        print(f"cannot listen in RUN_DIR {run_dir}: {error.strerror}", file=sys.stderr)
        return 1

    def with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    try:
        engine = subprocess.Popen(list(command), preexec_fn=with_parent)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    status = engine.returncode = _wait(engine.pid)
    server.server_close()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
