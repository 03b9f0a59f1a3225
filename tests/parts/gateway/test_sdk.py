"""The unmodified OpenAI SDK through the gateway, both address styles."""

from __future__ import annotations

import json

import openai
import pytest

from tests.parts.gateway.world import reply_json, world


def completion(head: bytes, body: bytes) -> bytes:
    asked = json.loads(body)
    message = {"role": "assistant", "content": f"I am {asked['model']}"}
    value = {
        "id": "x", "object": "chat.completion", "created": 1, "model": asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }  # fmt: skip
    if not asked.get("stream"):
        return reply_json(value)
    events = [
        {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
         "choices": [{"index": 0, "delta": {"content": word}}]}
        for word in ("I ", "stream")
    ]  # fmt: skip
    stream = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n"
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(stream), stream)
    )


async def test_the_openai_sdk() -> None:
    async with world() as w:
        await w.model("llama", "meta/Llama-3")
        (await w.sidecar("llama")).reply = completion
        messages = [{"role": "user", "content": "who?"}]
        for base, model in (("/v1", "meta/Llama-3"), ("/v1", "llama"), ("/llama/v1", "llama")):
            url = f"http://127.0.0.1:{w.port}{base}"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                answer = await client.chat.completions.create(model=model, messages=messages)
                assert answer.choices[0].message.content == f"I am {model}"
                stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
                assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "I stream"
                assert [m.id async for m in client.models.list()] == ["llama", "meta/Llama-3"]
                assert (await client.models.retrieve("meta/Llama-3")).id == "meta/Llama-3"
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{w.port}/v1", api_key="none", max_retries=0
        ) as client:
            with pytest.raises(openai.NotFoundError) as caught:
                await client.chat.completions.create(model="lama", messages=messages)
            assert caught.value.code == "model_not_found"
            assert "Did you mean 'llama'" in caught.value.message
