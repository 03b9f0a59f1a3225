"""Free TCP ports for the containers of one machine."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

LOWEST = 20000


class Ports:
    """Hands out ports that nobody listens on, each to one pod at a time.

    They lie below the range that the kernel takes the ports of outgoing connections from: a container that restarts
    must find its port still free.
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
        self._range = range(LOWEST, low) if low - LOWEST >= 1000 else range(LOWEST, 65536)

    def take(self, wanted: int | None = None) -> int:
        """A free port, `wanted` if that is free. OSError when the machine has none left."""
        start = random.randrange(len(self._range))  # noqa: S311 - spreads the supervisors of one machine
        candidates: list[int] = [wanted] if wanted else []
        for port in chain(candidates, self._range[start:], self._range[:start]):
            if port not in self._taken and self._is_free(port):
                self._taken.add(port)
                return port
        raise OSError("no TCP port is free on this machine")

    def give_back(self, ports: Iterable[int]) -> None:
        self._taken.difference_update(ports)

    @staticmethod
    def _is_free(port: int) -> bool:
        with socket.socket() as probe:
            # without it a port that only has old connections in TIME_WAIT would count as taken; with it, one that
            # somebody listens on still does
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))  # on no address at all: containers choose theirs
            except OSError:
                return False
            return True
