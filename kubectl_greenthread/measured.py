"""What Prometheus knows of models, asked beside everything else: who has none waits for nothing and sees no columns."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from greenthread.kube.errors import ConfigError, KubeError
from kubectl_greenthread.options import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Any

    from greenthread.kube.blocking import Client
    from greenthread.prometheus import ModelNumbers
    from greenthread.reach import Address

PATIENCE = 0.5
"""Seconds, from the start, after which a table is printed without it."""
GRACE = 0.2
"""Seconds it gets in any case: on a busy machine all else may have taken long, too."""
EVERY = 5.0
"""Seconds between two looks while something is watched."""
REMEMBERED = 600.0
"""Seconds for which it is remembered where a cluster's Prometheus is, or that there is none."""

Numbers = Mapping[tuple[str, str], "ModelNumbers"]


class Measured:
    """Asks in a thread of its own, once or again and again; `numbers`: the newest answer, None while there is none."""

    def __init__(self, session: Session, given: str, every: float = 0.0) -> None:
        """`given`: of --prometheus. ConfigError when that is no address."""
        self.numbers: Numbers | None = None
        self.trouble = ""
        """Why there are no numbers, if something is wrong."""
        self._session, self._given, self._every = session, given, every
        self._began = time.monotonic()
        self._error: ConfigError | None = None
        self._thread: threading.Thread | None = None
        if not self._known_to_have_none():
            import threading

            self._answered = threading.Event()
            session.config  # noqa: B018 read once, before there are two threads
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()

    def wait(self) -> Numbers | None:
        """The first answer, if it comes in time."""
        if self._thread is not None:
            in_time = self._answered.wait(max(self._began + PATIENCE - time.monotonic(), GRACE))
            if not in_time:
                self.trouble = f"Prometheus did not answer within {PATIENCE:g} s"
        if self._error is not None:
            raise self._error
        return self.numbers

    @property
    def warnings(self) -> list[str]:
        """What to say on stderr: only who asked for a Prometheus by name misses it."""
        return [self.trouble] if self.trouble and self._told() else []

    def _told(self) -> str:
        """What the command line, the environment or the kubeconfig says."""
        extension = self._session.config.extension.get("prometheus")
        return self._given or os.environ.get("GREENTHREAD_PROMETHEUS") or str(extension or "")

    def _known_to_have_none(self) -> bool:
        told = self._told()
        return told == "none" or (not told and _recall(self._session) == "")

    def _ask(self) -> None:
        from greenthread.kube.blocking import Client
        from greenthread.prometheus import Prometheus, model_numbers

        try:
            client = Client(self._session.config, PATIENCE if not self._every else EVERY)
            address = self._address(client)
            while address is not None:
                try:
                    prometheus = Prometheus(client, address, PATIENCE if not self._every else EVERY)
                    self.numbers = model_numbers(prometheus, time.time())
                    self.trouble = ""
                except KubeError as error:
                    self.numbers, self.trouble = None, str(error)
                self._answered.set()
                if not self._every:
                    return
                time.sleep(self._every)
        except ConfigError as error:
            self._error = error
        except KubeError as error:
            self.trouble = str(error)
        finally:
            self._answered.set()

    def _address(self, client: Client) -> Address | None:
        from greenthread.prometheus import find
        from greenthread.reach import Address

        told, path = self._told(), _recall(self._session)
        if not told and path:
            return Address(f"{client.config.server}{path}", "a Service through the API server", path)
        found = find(client, self._given)
        if not told:
            _remember(self._session, found.path if found is not None else "")
        return found


def _file() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "greenthread", "prometheus.json")


def _read() -> dict[str, Any]:
    import json

    try:
        with open(_file(), "rb") as file:
            found = json.loads(file.read(65536))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recall(session: Session) -> str | None:
    """The path at this API server, "" for none, None when it is not known (any more)."""
    entry: Any = _read().get(session.config.server)
    if not _is_fresh(entry, time.time()):
        return None
    path = str(entry[0])
    good = not path or path.startswith("/api/v1/namespaces/")
    return path if good else None


def _remember(session: Session, path: str) -> None:
    import json

    now = time.time()
    entries = {server: entry for server, entry in _read().items() if _is_fresh(entry, now)}
    entries[session.config.server] = [path, now]
    file = _file()
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(f"{file}.{os.getpid()}", "w") as new:
            json.dump(entries, new)
        os.replace(f"{file}.{os.getpid()}", file)
    except OSError:
        pass  # a cache that cannot be written is none


def _is_fresh(entry: Any, now: float) -> bool:
    try:
        return 0 <= now - float(entry[1]) < REMEMBERED
    except (TypeError, ValueError, IndexError, KeyError):
        return False
