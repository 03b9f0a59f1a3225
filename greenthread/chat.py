"""Talks to a model: chat completions as they stream, with what the gateway tells while the model wakes.

Standard library only and blocking: a program with an event loop runs it in a thread and calls `stop` from anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from greenthread.kube.blocking import Client, Stream
from greenthread.kube.errors import KubeError
from greenthread.reach import Address
from greenthread.values import dataclass

SILENCE = 900.0
"""Seconds without a byte after which a conversation counts as lost: a cold start and its queue take long."""
MAX_LINE = 4 * 1024 * 1024
"""Longest line of a stream, and largest error, in bytes."""


class ChatError(KubeError):
    """The model does not answer; the message is the server's, or says what happened.

    `status`: HTTP's, 0 when the stream itself said so; `retry_after`: seconds, if the server named them.
    """

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Kind(StrEnum):
    """What a piece is."""

    BEGIN = "begin"
    """The answer begins; the text is the header Server-Timing, e.g. `hold;dur=540.1`."""
    COMMENT = "comment"
    """The gateway's word while nothing else comes (an SSE comment), e.g. `waiting`."""
    THINKING = "thinking"
    TEXT = "text"
    END = "end"
    """The text is the finish reason: `stop`, `length`, …"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as it comes. `usage`: token counts, with the last piece if the server tells them."""

    kind: Kind
    text: str = ""
    usage: Mapping[str, int] | None = None


class Chat:
    """One model behind the gateway. `ask` may be called again and again; one at a time."""

    def __init__(self, client: Client, address: Address, namespace: str, model: str) -> None:
        """`model`: the Model's name; it is reached at `/<namespace>/<model>/v1`, which is its own."""
        self._client, self._address = client, address
        self._path, self._model = f"/{namespace}/{model}/v1", model
        self._stream: Stream | None = None
        self._stopped = False

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients."""
        return f"{self._address.url}{self._path}"

    def ask(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> Iterator[Piece]:
        """The pieces of the next message; `messages` as OpenAI's, `settings` go along (temperature, max_tokens).

        Closing the iterator ends the request. Raises ChatError, Unreachable.
        """
        body = {"model": self._model, "messages": list(messages), "stream": True,
                "stream_options": {"include_usage": True}, **settings}  # fmt: skip
        self._stopped = False
        stream = self._address.open(
            self._client, "POST", f"{self._path}/chat/completions", json.dumps(body).encode(),
            {"accept": "text/event-stream"}, timeout=SILENCE,
        )  # fmt: skip
        self._stream = stream
        try:
            if stream.status != 200:
                raise _refused(stream)
            yield Piece(Kind.BEGIN, stream.headers.get("server-timing", ""))
            yield from _pieces(stream)
        except KubeError:
            if not self._stopped:
                raise
        finally:
            self._stream = None
            stream.__exit__()

    def stop(self) -> None:
        """Ends the answer that is under way, from whichever thread: the iterator then ends quietly."""
        stream = self._stream
        if stream is not None:
            self._stopped = True
            stream.shut()


def _refused(stream: Stream) -> ChatError:
    parts, size = [], 0
    while size < MAX_LINE and (data := stream.read()):
        parts.append(data)
        size += len(data)
    body = b"".join(parts)
    wait = stream.headers.get("retry-after", "")
    return ChatError(_message(body, stream.status), stream.status, float(wait) if wait.isdecimal() else None)


def _message(body: bytes, status: int) -> str:
    """The message of an error: OpenAI's shape, Kubernetes' Status, or the text itself."""
    try:
        found = json.loads(body)
        error = found.get("error", found) if isinstance(found, dict) else {}
        message = error.get("message") if isinstance(error, dict) else error
        if isinstance(message, str) and message:
            return message
    except ValueError:
        pass
    text = " ".join(body[:300].decode("utf-8", "replace").split())
    return f"the gateway answered {status}{f': {text}' if text else ''}"


def _pieces(stream: Stream) -> Iterator[Piece]:
    finish, usage = "", None
    for kind, text in events(stream):
        if kind == "comment":
            yield Piece(Kind.COMMENT, text)
            continue
        if text == "[DONE]":
            break
        try:
            found = json.loads(text)
        except ValueError:
            raise ChatError(f"the answer has a part that is not JSON: {text[:80]!r}") from None
        if not isinstance(found, dict):
            continue
        if "error" in found or found.get("object") == "error":
            raise ChatError(_message(text.encode(), 0))
        if isinstance(found.get("usage"), dict):
            usage = {name: count for name, count in found["usage"].items() if isinstance(count, int)}
        for choice in (found.get("choices") or ())[:1]:
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                yield Piece(Kind.THINKING, str(thought))
            if delta.get("content"):
                yield Piece(Kind.TEXT, str(delta["content"]))
            finish = str(choice.get("finish_reason") or finish)
    else:
        if not finish:
            raise ChatError("the answer was cut off: the connection ended before it was complete")
    yield Piece(Kind.END, finish, usage)


def events(stream: Stream) -> Iterator[tuple[str, str]]:
    """Server-sent events: (`comment`, text) and (`data`, text). ChatError for a line without end."""
    rest = b""
    data: list[str] = []
    while block := stream.read():
        rest += block
        if len(rest) > MAX_LINE:
            raise ChatError(f"the answer has a line of more than {MAX_LINE} bytes")
        *lines, rest = rest.split(b"\n")
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if line.startswith(":"):
                yield "comment", line[1:].strip()
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif not line and data:
                yield "data", "\n".join(data)
                data = []
    if data:
        yield "data", "\n".join(data)
