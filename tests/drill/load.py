"""Clients that ask all the time, in mixed ways, and remember exactly how each request ended."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

#: Stands in every prompt and key; no log may have it.
SECRET = "drill-secret"
#: Codes of errors that say: an engine or a sidecar failed on the way.
BROKEN = {"upstream_error", "upstream_unreachable", "internal_error"}


@dataclass
class Request:
    """One request: what was asked of whom, when, and how it ended. Times are of the monotonic clock."""

    id: str
    model: str
    kind: str
    streaming: bool
    direct: bool
    """To the sidecar's own address, past the gateway."""
    began: float
    ended: float = 0.0
    status: int = 0
    outcome: str = "running"
    """`answered`, `refused` (an error that says why), `broken`, or `unconnected` (nobody listened)."""
    why: str = ""
    timing: str = ""
    """The answer's Server-Timing, when its head told it."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def body_of(kind: str, model: str, streaming: bool, tokens: int) -> dict[str, Any]:
    """What is sent for a request."""
    common: dict[str, Any] = {"model": model, "max_tokens": tokens, "stream": streaming, "ignore_eos": True}
    if kind == "completions":
        return common | {"prompt": f"Tell {SECRET}"}
    return common | {"messages": [{"role": "user", "content": f"Tell {SECRET}"}]}


class Load:
    """`with Load(...) as load:` runs the clients; at its end every one of `load.requests` has ended."""

    def __init__(
        self,
        gateway: str,
        sidecar: Callable[[str], str],
        models: Sequence[str],
        clients: int,
        direct: int,
        patience: float,
        rng: random.Random,
    ) -> None:
        """`clients` ask the gateway, `direct` the sidecar at the URL that `sidecar(model)` names. `patience`: seconds
        that a client waits for an answer."""
        self._gateway, self._sidecar, self._models, self._patience = gateway, sidecar, models, patience
        self.requests: list[Request] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(random.Random(rng.random()), number >= clients))
            for number in range(clients + direct)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, rng: random.Random, direct: bool) -> None:
        with httpx.Client(timeout=self._patience) as http:
            while not self._stop.wait(rng.uniform(0.02, 0.25)):
                # some models are asked often, others seldom
                model = self._models[min(int(rng.expovariate(0.4)), len(self._models) - 1)]
                kind = rng.choice(("chat/completions", "completions", "messages"))
                streaming = rng.random() < 0.5
                request = Request(f"test-{uuid.uuid4().hex}", model, kind, streaming, direct, time.monotonic())
                self.requests.append(request)
                try:
                    self._ask(http, request, rng.choice((2, 20, 200)))
                except httpx.ConnectError as error:
                    request.outcome, request.why = "unconnected", str(error)
                    self._stop.wait(0.5)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    request.outcome, request.why = "broken", f"{type(error).__name__}: {error}"
                finally:
                    request.ended = time.monotonic()

    def _ask(self, http: httpx.Client, request: Request, tokens: int) -> None:
        """Sends it and reads its answer to the end."""
        body = body_of(request.kind, request.model, request.streaming, tokens)
        headers = {"X-Request-Id": request.id, "Authorization": f"Bearer {SECRET}"}
        base = self._sidecar(request.model) if request.direct else f"{self._gateway}/{request.model}"
        with http.stream("POST", f"{base}/v1/{request.kind}", json=body, headers=headers) as answer:
            request.status = answer.status_code
            request.timing = answer.headers.get("server-timing", "")
            text = answer.read().decode()
            if answer.status_code == 200 and not request.streaming:
                json.loads(text)
                request.outcome = "answered"
            elif answer.status_code == 200:
                self._read_stream(request, text)
            else:
                self._judge(request, json.loads(text)["error"], answer.status_code, answer.headers)

    def _read_stream(self, request: Request, text: str) -> None:
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        last = json.loads(events[-1]) if events and events[-1] != "[DONE]" else {}
        if last.get("error"):
            self._judge(request, last["error"], 0, None)
        elif (events and events[-1] == "[DONE]") or last.get("type") == "message_stop":
            request.outcome = "answered"
        else:
            request.outcome, request.why = "broken", "the stream ended without its end"

    @staticmethod
    def _judge(request: Request, error: dict[str, Any], status: int, headers: httpx.Headers | None) -> None:
        """An error in the API's shape: a refusal that says why, or that something broke. Status 0: in a stream."""
        message = str(error["message"])
        request.why = f"{status or 'in the stream'}: {message}"
        api_error = error.get("code") in BROKEN or error.get("type") == "api_error"
        refused = status in (0, 503) and not api_error and message != ""
        if status == 503 and (headers is None or "retry-after" not in headers):
            refused, request.why = False, f"{request.why} (without Retry-After)"
        request.outcome = "refused" if refused else "broken"
