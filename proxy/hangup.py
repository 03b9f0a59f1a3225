"""Notice that a client has left while its connection is not being read."""

from __future__ import annotations

import asyncio
import select
from typing import Protocol


class Watched(Protocol):
    """What is told that its peer has left."""

    def hung_up(self) -> None:
        """The peer closed or reset the connection."""
        ...


class Hangups:
    """Watches file descriptors for a hang-up only (an epoll set of its own, itself watched by the loop).

    Where there is no epoll (macOS) a hang-up is noticed when the connection is read again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, Watched] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, fd: int, who: Watched) -> None:
        """Tell `who` when the peer of the socket `fd` leaves."""
        if self._epoll is None or fd < 0 or fd in self._watched:
            return
        self._watched[fd] = who
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`."""
        if self._epoll is not None and self._watched.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:  # closed already: the kernel has forgotten it
                pass

    def _ready(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0):
            who = self._watched.get(fd)
            self.unwatch(fd)
            if who is not None:
                who.hung_up()

    def close(self) -> None:
        """Release the epoll set."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
