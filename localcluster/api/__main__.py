"""`python -m localcluster.api`: the API as a program of its own."""

import argparse
import sys
from pathlib import Path

import uvloop

from greenthread.clock import SystemClock

from .audit import AuditLog
from .core import Api
from .pods import log_folder
from .server import load_token, serve
from .storage import StorageError, Store


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m localcluster.api", description="A Kubernetes API for one machine.")
    parser.add_argument("--state-dir", type=Path, required=True, help="folder that keeps the objects")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    parser.add_argument("--kubeconfig", type=Path, help="where to write a kubeconfig (default: in the state folder)")
    parser.add_argument("--log-dir", type=Path, help="folder with the logs of containers, for `kubectl logs`")
    parser.add_argument("--audit-log", type=Path, help="file to append a line of JSON to for every request")
    given = parser.parse_args(arguments)
    try:
        given.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        token = load_token(given.state_dir / "token")
        store = Store(given.state_dir / "objects.sqlite")
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot use the state folder {given.state_dir}: {error.strerror}", file=sys.stderr)
        return 1
    try:
        audit = AuditLog(given.audit_log, SystemClock()) if given.audit_log else None
    except OSError as error:
        print(f"error: cannot write the audit log {given.audit_log}: {error.strerror}", file=sys.stderr)
        return 1
    logs = log_folder(given.log_dir) if given.log_dir else None
    kubeconfig = given.kubeconfig or given.state_dir / "kubeconfig"
    try:
        api = Api(store, token=token, logs=logs)
        return uvloop.run(serve(api, given.state_dir, given.port, kubeconfig, token, audit))
    finally:
        store.close()
        if audit is not None:
            audit.close()


if __name__ == "__main__":
    sys.exit(main())
