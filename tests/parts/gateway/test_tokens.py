"""Tokens by model, as unmodified SDKs spend them on a simulated engine behind the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from localcluster.gpus.ledger import GIB, create
from proxy.heartbeat import BEAT
from tests.parts.gateway.world import SYSTEM, World, reply_json, request, world
from tests.parts.localcluster_engine.conftest import RunningEngine

pytestmark = pytest.mark.processes
ASK = [{"role": "user", "content": "Hello there"}]
KEY = f"{SYSTEM}/llama"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("engine")
    ledger = create(folder / "gpus.db", count=1, total_bytes=96 * GIB)
    arguments = ("meta/Llama-8B", "--enable-sleep-mode", "--served-model-name", "meta/Llama-8B", "llama")
    running = RunningEngine(ledger, arguments, {}, folder / "engine.log")
    running.wait()
    yield running
    running.stop()
    ledger.close()


@dataclass
class Spending:
    """A gateway before the engine, and what it counted."""

    gateway: World
    url: str

    async def counted(self) -> tuple[int, int]:
        """Tokens of prompts and of completions of the model."""
        text = (await self.gateway.get("/metrics")).body.decode()
        [family] = [f for f in text_string_to_metric_families(text) if f.name == "gthread_apiserver_tokens"]
        of = {sample.labels["kind"]: int(sample.value) for sample in family.samples if sample.labels["model"] == KEY}
        return of["prompt"], of["completion"]


@asynccontextmanager
async def spending(port: int) -> AsyncIterator[Spending]:
    async with world() as gateway:
        await gateway.model("llama", "meta/Llama-8B")
        await gateway.slice("llama", "llama-0", port)
        yield Spending(gateway, f"http://127.0.0.1:{gateway.port}")


async def test_openai_answers(engine: RunningEngine) -> None:
    async with (
        spending(engine.port) as spent,
        openai.AsyncOpenAI(base_url=f"{spent.url}/v1", api_key="none", max_retries=0) as client,
    ):
        chat = await client.chat.completions.create(model="llama", messages=ASK, max_tokens=7)
        assert chat.usage is not None
        prompt, completion = chat.usage.prompt_tokens, chat.usage.completion_tokens
        assert prompt
        assert completion
        assert await spent.counted() == (prompt, completion)
        text = await client.completions.create(model="llama", prompt="Hello", max_tokens=5)
        assert text.usage is not None
        prompt, completion = prompt + text.usage.prompt_tokens, completion + text.usage.completion_tokens
        assert await spent.counted() == (prompt, completion)
        answer = await client.responses.create(model="llama", input="Hello", max_output_tokens=5)
        assert answer.usage is not None
        prompt, completion = prompt + answer.usage.input_tokens, completion + answer.usage.output_tokens
        assert await spent.counted() == (prompt, completion)


async def test_openai_streams_tell_when_they_are_asked_to(engine: RunningEngine) -> None:
    async with (
        spending(engine.port) as spent,
        openai.AsyncOpenAI(base_url=f"{spent.url}/llama/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="llama", messages=ASK, stream=True, max_tokens=7)
        assert [chunk async for chunk in stream]
        assert await spent.counted() == (0, 0)
        stream = await client.chat.completions.create(
            model="llama", messages=ASK, stream=True, max_tokens=30, stream_options={"include_usage": True}
        )
        usage = [chunk.usage async for chunk in stream][-1]
        assert usage is not None
        assert await spent.counted() == (usage.prompt_tokens, usage.completion_tokens)
        events = await client.responses.create(model="llama", input="Hello", max_output_tokens=5, stream=True)
        last = [event async for event in events][-1]
        assert last.type in ("response.completed", "response.incomplete")
        told = last.response.usage
        assert told is not None
        prompt, completion = await spent.counted()
        assert (prompt - usage.prompt_tokens, completion - usage.completion_tokens) == (
            told.input_tokens,
            told.output_tokens,
        )


async def test_anthropic_answers_and_streams(engine: RunningEngine) -> None:
    async with (
        spending(engine.port) as spent,
        anthropic.AsyncAnthropic(base_url=spent.url, api_key="none", max_retries=0) as client,
    ):
        whole = await client.messages.create(model="llama", messages=ASK, max_tokens=7)
        assert await spent.counted() == (whole.usage.input_tokens, whole.usage.output_tokens)
        async with client.messages.stream(model="llama", messages=ASK, max_tokens=30) as stream:
            streamed = (await stream.get_final_message()).usage
        assert streamed.output_tokens
        assert await spent.counted() == (
            whole.usage.input_tokens + streamed.input_tokens,
            whole.usage.output_tokens + streamed.output_tokens,
        )


async def test_errors_and_encoded_answers_are_not_read() -> None:
    usage = {"usage": {"prompt_tokens": 5, "total_tokens": 10, "completion_tokens": 5}}
    async with world() as gateway:
        await gateway.model("llama", "meta/Llama-8B")
        sidecar = await gateway.sidecar("llama")
        spent = Spending(gateway, "")
        for status, extra, found in (
            ("500 Internal Server Error", "", (0, 0)),
            ("200 OK", "Content-Encoding: gzip\r\n", (0, 0)),
            ("200 OK", "", (5, 5)),
        ):
            sidecar.reply = lambda head, body, status=status, extra=extra: reply_json(usage, status, extra)
            await gateway.ask(request("/v1/chat/completions", {"model": "llama"}))
            assert await spent.counted() == found


async def test_beats_before_a_stream_do_not_hide_its_first_event() -> None:
    """A sidecar whose model wakes sends signs of life first; Anthropic's first event has the prompt's tokens."""
    start = b'event: message_start\ndata: {"message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}\n\n'
    end = b'event: message_delta\ndata: {"usage": {"output_tokens": 15}}\n\n'
    events = [b"%x\r\n%b\r\n" % (len(data), data) for data in (start, *[b"data: {}\n\n"] * 20, end)]
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-GreenThread-Heartbeat: 1s\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    async with world() as gateway:
        await gateway.model("llama", "meta/Llama-8B")
        sidecar = await gateway.sidecar("llama")

        async def script(upstream, reader, writer) -> None:  # type: ignore[no-untyped-def]
            await upstream.read_request(reader)
            for piece in (head, BEAT, BEAT, *events, b"0\r\n\r\n"):
                before = len(received)
                writer.write(piece)
                await writer.drain()
                if piece is not head:  # each in a segment of its own
                    await gateway.until(lambda before=before: len(received) > before)

        sidecar.upstream.script = script
        client = await gateway.connect()
        await client.send(request("/v1/messages", {"model": "llama", "stream": True}))
        received: list[bytes] = []
        while not received or not received[-1].endswith(b"0\r\n\r\n"):
            received.append(await client.reader.read(65536))
        assert await Spending(gateway, "").counted() == (25, 15)
