"""POST /v1/responses: OpenAI's newer API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from localcluster.engine import chat, checks, serving
from localcluster.engine.answers import Answer, Conversation, answer
from localcluster.engine.checks import Body
from localcluster.engine.engine import Engine
from localcluster.engine.errors import ApiError, InvalidBody
from localcluster.engine.http import Request, Response, json_response

_TYPES = {"reasoning": "reasoning", "content": "message", "tool": "function_call"}


async def responses(engine: Engine, request: Request) -> Response:
    """A response, whole or as a stream of events."""
    body = checks.json_body(request)
    checks.required(body, "input")
    name = serving.model_name(engine, body)
    checks.temperature(body)
    conversation = _conversation(engine, body)
    asked = checks.whole(body, "max_output_tokens", None)
    bounds = checks.limits(body, asked, conversation.prompt_tokens, engine.arguments.max_model_len)
    answers = [answer(name, conversation, bounds)]
    serving.ordered_fault(request)
    frame = _frame(body, name, bounds.max_tokens)
    if body.get("stream"):
        stream = _stream(engine, request, frame, conversation.prompt_tokens, answers)
        return Response(content_type=serving.EVENT_STREAM, stream=stream)
    async with serving.working(engine, request, conversation.prompt_tokens) as work:
        (one,) = await serving.collect(engine, work, answers)
    output = [
        _item(kind, serving.new_id(prefix), said, one.tool)
        for kind, prefix, said in (
            ("reasoning", "rs_", one.reasoning),
            ("content", "msg_", one.content),
            ("tool", "fc_", one.tool_arguments),
        )
        if said
    ]
    spent = _usage(work.prompt_tokens, work.generated_tokens, len(answers[0].reasoning))
    return json_response({**frame, **_end(one.finish_reason), "output": output, "usage": spent})


async def _stream(
    engine: Engine, request: Request, frame: Body, prompt_tokens: int, answers: list[Answer]
) -> AsyncGenerator[bytes, None]:
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return serving.named(kind, {**fields, "sequence_number": number - 1, "type": kind})

    try:
        async with serving.working(engine, request, prompt_tokens) as work:
            yield event("response.created", response=frame)
            yield event("response.in_progress", response=frame)
            output: list[Body] = []
            kind, said, item_id = "", "", ""

            def close() -> list[bytes]:
                item = _item(kind, item_id, said, answers[0].tool)
                output.append(item)
                return _closing(event, kind, item, said, len(output) - 1)

            async for token in serving.events(engine, work, answers):
                if token.kind != kind:
                    if kind:
                        for chunk in close():
                            yield chunk
                    kind, said, item_id = (
                        token.kind,
                        "",
                        serving.new_id({"content": "msg_", "tool": "fc_"}.get(token.kind, "rs_")),
                    )
                    for chunk in _opening(event, kind, item_id, answers[0].tool, len(output)):
                        yield chunk
                said += token.text
                yield _delta(event, kind, item_id, token.text, len(output))
            if kind:
                for chunk in close():
                    yield chunk
            finish = "abort" if work.aborted else answers[0].finish_reason
            spent = _usage(prompt_tokens, work.generated_tokens, len(answers[0].reasoning))
            whole = {**frame, **_end(finish), "output": output, "usage": spent}
            yield event("response.completed", response=whole)
    except ApiError as error:
        yield event("error", message=str(error), code=str(error.status), param=error.param)


def _opening(event: Any, kind: str, item_id: str, tool: str, place: int) -> list[bytes]:
    where = {"item_id": item_id, "output_index": place, "content_index": 0}
    item = {**_item(kind, item_id, "", tool), "status": "in_progress"}
    if kind != "tool":
        item["content"] = []
    added = event("response.output_item.added", item=item, output_index=place)
    if kind == "content":
        part: Body = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return [added, event("response.content_part.added", part=part, **where)]
    if kind == "reasoning":
        return [added, event("response.reasoning_part.added", part={"text": "", "type": "reasoning_text"}, **where)]
    return [added]


def _delta(event: Any, kind: str, item_id: str, text: str, place: int) -> bytes:
    where = {"item_id": item_id, "output_index": place}
    if kind == "tool":
        return bytes(event("response.function_call_arguments.delta", delta=text, **where))
    if kind == "reasoning":
        return bytes(event("response.reasoning_text.delta", delta=text, content_index=0, **where))
    return bytes(event("response.output_text.delta", delta=text, content_index=0, logprobs=[], **where))


def _closing(event: Any, kind: str, item: Body, said: str, place: int) -> list[bytes]:
    where: Body = {"item_id": item["id"], "output_index": place}
    if kind == "tool":
        done = [event("response.function_call_arguments.done", arguments=said, name=item["name"], **where)]
    elif kind == "reasoning":
        done = [
            event("response.reasoning_text.done", text=said, content_index=0, **where),
            event(
                "response.reasoning_part.done", part={"text": said, "type": "reasoning_text"}, content_index=0, **where
            ),
        ]
    else:
        done = [
            event("response.output_text.done", text=said, content_index=0, logprobs=[], **where),
            event("response.content_part.done", part=item["content"][0], content_index=0, **where),
        ]
    return [*done, event("response.output_item.done", item=item, output_index=place)]


def _item(kind: str, item_id: str, said: str, tool: str) -> Body:
    item: Body = {"id": item_id, "type": _TYPES[kind], "status": "completed"}
    if kind == "tool":
        return {**item, "call_id": item_id.replace("fc_", "call_"), "name": tool, "arguments": said}
    if kind == "reasoning":
        return {**item, "summary": [], "content": [{"text": said, "type": "reasoning_text"}], "encrypted_content": None}
    part: Body = {"annotations": [], "text": said, "type": "output_text", "logprobs": None}
    return {**item, "role": "assistant", "content": [part]}


def _end(finish_reason: str) -> Body:
    if finish_reason == "length":
        return {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return {"status": "cancelled" if finish_reason == "abort" else "completed"}


def _usage(prompt: int, generated: int, reasoning: int) -> Body:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": min(reasoning, generated), "tool_output_tokens": 0},
        "total_tokens": prompt + generated,
    }


def _frame(body: Body, name: str, max_tokens: int) -> Body:
    return {
        "id": serving.new_id("resp_"),
        "created_at": serving.now(),
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata"),
        "model": name,
        "object": "response",
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0 if body.get("temperature") is None else body["temperature"],
        "tool_choice": body.get("tool_choice") or ("auto" if body.get("tools") else "none"),
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": max_tokens,
        "previous_response_id": None,
        "reasoning": body.get("reasoning"),
        "service_tier": "auto",
        "status": "in_progress",
        "text": body.get("text"),
        "truncation": "disabled",
        "usage": None,
        "user": body.get("user"),
    }


def _conversation(engine: Engine, body: Body) -> Conversation:
    given = body["input"]
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidBody("string_type", "body.input", "Input should be a valid string or a list", given)
    parts, images, said, last = [], 0, "", "user"
    if body.get("instructions"):
        parts.append(f"<|im_start|>system\n{body['instructions']}<|im_end|>\n")
    for place, item in enumerate(given):
        if not isinstance(item, dict):
            raise InvalidBody("dict_type", f"body.input.{place}", "Input should be a valid dictionary", item)
        kind = item.get("type", "message")
        if kind == "function_call_output":
            last, said = "tool", str(item.get("output", ""))
        elif kind == "function_call":
            last, said = "assistant", f"{item.get('name')}{item.get('arguments')}"
        elif kind == "message":
            last = str(item.get("role", "user"))
            said, seen = chat.content_text(item.get("content"), f"body.input.{place}.content")
            images += seen
        else:
            continue
        parts.append(f"<|im_start|>{last}\n{said}<|im_end|>\n")
    conversation = Conversation("".join(parts) + "<|im_start|>assistant\n", said, last, images)
    tools = [tool for tool in checks.objects(body, "tools", []) if tool.get("type") == "function"]
    asked = dict(body)
    asked["tools"] = [{"type": "function", "function": tool} for tool in tools]
    if isinstance(body.get("tool_choice"), dict):
        asked["tool_choice"] = {"type": "function", "function": {"name": body["tool_choice"].get("name")}}
    conversation.tool_choice, conversation.tools = chat.tool_choice(engine, asked)
    text_format = checks.member(checks.member(body, "text"), "format")
    conversation.schema, conversation.choices = chat.structure(text_format, checks.member(body, "structured_outputs"))
    off = checks.member(body, "reasoning").get("effort") == "none"
    conversation.thinks = bool(engine.arguments.reasoning_parser) and not off
    return conversation
