"""What a conversation needs of a model's address; `greenthread.chat.Chat` is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from greenthread.chat import Piece


class Speaker(Protocol):
    """Blocking: used from a thread; `stop` may be called from any."""

    def ask(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> Iterator[Piece]: ...

    def stop(self) -> None: ...
