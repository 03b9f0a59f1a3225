"""`chat`: talks to a model in the terminal, and shows how it wakes for that."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator

from greenthread.chat import Chat, ChatError, Kind, Piece
from greenthread.snapshot import Shown
from greenthread.units import short_duration
from kubectl_greenthread.arguments import Usage
from kubectl_greenthread.failures import Failure, Interrupted
from kubectl_greenthread.options import Session
from kubectl_greenthread.output import tell
from kubectl_greenthread.reading import View, bare_name, read_models
from kubectl_greenthread.rendering import Plain, Shower, shower
from kubectl_greenthread.url import gateway

LONGEST = 4 * 1024 * 1024
"""Bytes that are read from stdin at most."""
HELP = "Ctrl-C stops an answer, Ctrl-D or /exit ends, /new forgets what was said."


def chat(
    session: Session,
    name: str,
    message: str | None,
    system: str | None,
    url: str,
    max_tokens: int | None,
    temperature: float | None,
    plain: bool,
) -> None:
    """Talk to MODEL. It wakes for that, and you see what it waits for.

    With -m, or with text on stdin, one question and one answer, which is all that goes to stdout; both: stdin is what
    the question is about. Else a conversation.
    """
    view = read_models(session, [name])
    settings: dict[str, object] = {}
    if max_tokens is not None:
        settings["max_tokens"] = max_tokens
    if temperature is not None:
        settings["temperature"] = temperature
    talk = _Talk(session, view, bare_name(name), url, settings, plain)
    messages = [{"role": "system", "content": system}] if system else []
    given = "" if sys.stdin.isatty() else _stdin()
    if message is not None or given.strip():
        content = "\n\n".join(part for part in (message, given.strip()) if part)
        talk.answer([*messages, {"role": "user", "content": content}])
    elif sys.stdin.isatty():
        _converse(talk, messages)
    else:
        raise Usage("nothing to say: pass -m TEXT, or text on stdin")


def _stdin() -> str:
    text = sys.stdin.read(LONGEST + 1)
    if len(text) > LONGEST:
        raise Failure(f"stdin has more than {LONGEST} characters; models read less")
    return text


def _converse(talk: _Talk, messages: list[dict[str, str]]) -> None:
    try:
        import readline  # noqa: F401 arrow keys and history at the prompt
    except ImportError:
        pass  # some builds of Python have none
    tell(f"Talking to {talk.name}. {HELP}")
    said = list(messages)
    while True:
        try:
            text = input(f"{talk.terminal.paint('you', 'bold')}> ").strip()
        except EOFError:
            print()
            return
        if text in ("/exit", "/quit", "/bye"):
            return
        if text == "/new":
            said = list(messages)
            tell("forgotten")
        elif text in ("/help", "/?"):
            tell(HELP)
        elif text:
            said.append({"role": "user", "content": text})
            try:
                reply = talk.answer(said)
            except (ChatError, Failure) as error:
                tell(f"error: {error}")
                said.pop()
                continue
            said.append({"role": "assistant", "content": reply})


class _Talk:
    """One model, spoken to."""

    def __init__(
        self, session: Session, view: View, name: str, url: str, settings: dict[str, object], plain: bool
    ) -> None:
        self.name, self.terminal = name, session.terminal
        self._session, self._view, self._settings, self._plain = session, view, settings, plain
        self._chat = Chat(session.client, gateway(session, url), session.namespace, name)

    def answer(self, messages: list[dict[str, str]]) -> str:
        """Asks and shows the answer as it comes; what was answered. Ctrl-C ends the answer, not the program, unless it
        has not begun: then the wake goes on without us."""
        pieces = _Pieces(self._chat, messages, self._settings)
        try:
            first = self._awaited(pieces)
        except KeyboardInterrupt:
            self._chat.stop()
            raise Interrupted(f"not waiting any longer; {self.name} wakes all the same") from None
        show: Shower = Plain(self.terminal) if self._plain else shower(self.terminal)
        text: list[str] = []
        began = time.monotonic()
        usage, finish = None, ""
        try:
            for piece in pieces.rest(first):
                if piece.kind is Kind.TEXT:
                    text.append(piece.text)
                    show.text(piece.text)
                elif piece.kind is Kind.THINKING:
                    show.thinking(piece.text)
                elif piece.kind is Kind.END:
                    usage, finish = piece.usage, piece.text
        except KeyboardInterrupt:
            self._chat.stop()
            finish = "stopped"
        finally:
            show.end()
        self._remarks(finish, usage, time.monotonic() - began)
        return "".join(text)

    def _remarks(self, finish: str, usage: object, took: float) -> None:
        count = usage.get("completion_tokens", 0) if isinstance(usage, dict) else 0
        remarks = []
        if count and sys.stderr.isatty():
            speed = f", {count / took:.0f}/s" if took > 0.2 else ""
            remarks.append(f"{count} tokens in {short_duration(took)}{speed}")
        if finish == "length":
            remarks.append("cut off: the most tokens that were allowed")
        elif finish == "stopped":
            remarks.append("stopped")
        if remarks:
            tell(self.terminal.paint("; ".join(remarks), "dim") if sys.stderr.isatty() else "; ".join(remarks))

    def _awaited(self, pieces: _Pieces) -> Piece:
        """The first piece; meanwhile how the model wakes is shown."""
        row = self._view.row(self.name)
        piece = pieces.next(0.3)  # most answers of a model that serves begin by then
        if piece is not None:
            return piece
        from kubectl_greenthread.waiting import Waiter, woke

        began = time.monotonic()
        waiter = Waiter(self._session, self._view, [woke(self.name)])
        try:
            while piece is None:
                row = waiter.step(0.05)
                piece = pieces.next(0.05)
        finally:
            waiter.close()
        if row.state is not Shown.SLEEPING and sys.stderr.isatty():
            timing = f" ({piece.text})" if piece.kind is Kind.BEGIN and piece.text else ""
            tell(
                self.terminal.paint(
                    f"{self.name} answers after {short_duration(time.monotonic() - began)}{timing}", "dim"
                )
            )
        return piece


class _Pieces:
    """Pieces of an answer, read by a thread so that something else can be shown meanwhile."""

    def __init__(self, chat: Chat, messages: list[dict[str, str]], settings: dict[str, object]) -> None:
        self._queue: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(chat, list(messages), settings), daemon=True)
        self._thread.start()

    def _read(self, chat: Chat, messages: list[dict[str, str]], settings: dict[str, object]) -> None:
        try:
            for piece in chat.ask(messages, **settings):
                self._queue.put(piece)
            self._queue.put(None)
        except BaseException as error:  # told to whoever reads, in its own thread
            self._queue.put(error)

    def next(self, timeout: float) -> Piece | None:
        """The next piece that is no comment; None when none came in time. Raises what ended the answer."""
        try:
            found = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        if found is None:
            return Piece(Kind.END, "stopped")
        return found if found.kind is not Kind.COMMENT else None

    def rest(self, first: Piece) -> Iterator[Piece]:
        """All pieces from this one on."""
        piece: Piece | None = first
        while True:
            if piece is not None:
                yield piece
                if piece.kind is Kind.END:
                    return
            piece = self.next(3600.0)
