"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, as vLLM answers it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from localcluster.engine import checks, serving
from localcluster.engine.answers import Answer, Conversation, answer
from localcluster.engine.checks import Body
from localcluster.engine.engine import Engine
from localcluster.engine.errors import ApiError, InvalidBody
from localcluster.engine.http import Request, Response, json_response
from localcluster.engine.serving import Finished

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "abort": "end_turn"}


async def messages(engine: Engine, request: Request) -> Response:
    """A message, whole or as a stream."""
    body = checks.json_body(request)
    given = checks.objects(body, "messages")
    checks.required(body, "max_tokens")
    asked = checks.whole(body, "max_tokens", None)
    name = serving.model_name(engine, body)
    checks.temperature(body)
    conversation = _conversation(engine, body, given)
    bounds = checks.limits(body, asked, conversation.prompt_tokens, engine.arguments.max_model_len)
    answers = [answer(name, conversation, bounds)]
    serving.ordered_fault(request)
    if body.get("stream"):
        stream = _stream(engine, request, name, conversation.prompt_tokens, answers)
        return Response(content_type=serving.EVENT_STREAM, stream=stream)
    async with serving.working(engine, request, conversation.prompt_tokens) as work:
        (finished,) = await serving.collect(engine, work, answers)
    return json_response({
        "id": serving.new_id("chatcmpl-"),
        "type": "message",
        "role": "assistant",
        "content": _blocks(finished),
        "model": name,
        "stop_reason": "stop_sequence" if finished.stop_reason else _STOP_REASONS[finished.finish_reason],
        "stop_sequence": finished.stop_reason,
        "usage": {"input_tokens": work.prompt_tokens, "output_tokens": work.generated_tokens},
    })  # fmt: skip


async def count_tokens(engine: Engine, request: Request) -> Response:
    """How many tokens the messages are. Needs no GPU, but the real one has it behind the same engine."""
    body = checks.json_body(request)
    serving.model_name(engine, body)
    total = _conversation(engine, body, checks.objects(body, "messages")).prompt_tokens
    return json_response({"input_tokens": total, "context_management": {"original_input_tokens": total}})


def _blocks(one: Finished) -> list[Body]:
    blocks: list[Body] = []
    if one.reasoning:
        blocks.append({"type": "thinking", "thinking": one.reasoning, "signature": serving.new_id("")})
    if one.content or not (one.tool or one.reasoning):
        blocks.append({"type": "text", "text": one.content})
    if one.tool:
        try:
            given = json.loads(one.tool_arguments)
        except ValueError:
            given = {}  # cut off by max_tokens
        blocks.append({"type": "tool_use", "id": serving.new_id("chatcmpl-tool-"), "name": one.tool, "input": given})
    return blocks


async def _stream(
    engine: Engine, request: Request, name: str, prompt_tokens: int, answers: list[Answer]
) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in _stream_events(engine, request, name, prompt_tokens, answers):
            yield chunk
    except ApiError as error:
        yield b"event: error\ndata: " + error.response(anthropic=True).body + b"\n\n"


async def _stream_events(
    engine: Engine, request: Request, name: str, prompt_tokens: int, answers: list[Answer]
) -> AsyncGenerator[bytes, None]:
    async with serving.working(engine, request, prompt_tokens) as work:
        started: Body = {
            "id": serving.new_id("chatcmpl-"),
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": name,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
        }
        yield serving.named("message_start", {"type": "message_start", "message": started})
        index, kind = -1, ""
        async for event in serving.events(engine, work, answers):
            if event.kind != kind:
                if kind:
                    yield serving.named("content_block_stop", {"type": "content_block_stop", "index": index})
                index, kind = index + 1, event.kind
                block = _empty_block(kind, answers[0].tool)
                start = {"type": "content_block_start", "content_block": block, "index": index}
                yield serving.named("content_block_start", start)
            delta = {"type": "content_block_delta", "delta": _delta(kind, event.text), "index": index}
            yield serving.named("content_block_delta", delta)
        if kind:
            yield serving.named("content_block_stop", {"type": "content_block_stop", "index": index})
        one = answers[0]
        reason = "stop_sequence" if one.stop_reason else _STOP_REASONS["abort" if work.aborted else one.finish_reason]
        counts = {"input_tokens": prompt_tokens, "output_tokens": work.generated_tokens}
        ended = {"stop_reason": reason, "stop_sequence": one.stop_reason}
        yield serving.named("message_delta", {"type": "message_delta", "delta": ended, "usage": counts})
        yield serving.named("message_stop", {"type": "message_stop"})


def _empty_block(kind: str, tool: str) -> Body:
    if kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if kind == "tool":
        return {"type": "tool_use", "id": serving.new_id("chatcmpl-tool-"), "name": tool, "input": {}}
    return {"type": "text", "text": ""}


def _delta(kind: str, text: str) -> Body:
    if kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    if kind == "tool":
        return {"type": "input_json_delta", "partial_json": text}
    return {"type": "text_delta", "text": text}


def _conversation(engine: Engine, body: Body, given: list[Body]) -> Conversation:
    if not given:
        raise ApiError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    said, images, last, result = "", 0, "user", False
    system, _, _ = _text(body.get("system"), "body.system")
    parts = [f"<|im_start|>system\n{system}<|im_end|>\n"] if system else []
    for place, message in enumerate(given):
        last = str(message.get("role"))
        if last not in ("user", "assistant", "system"):
            raise InvalidBody(
                "literal_error", f"body.messages.{place}.role", "Input should be 'user' or 'assistant'", last
            )
        said, seen, result = _text(message.get("content"), f"body.messages.{place}.content")
        images += seen
        parts.append(f"<|im_start|>{last}\n{said}<|im_end|>\n")
    prompt = "".join(parts) + "<|im_start|>assistant\n"
    conversation = Conversation(prompt, said, "tool" if result else last, images)
    tools = checks.objects(body, "tools", [])
    conversation.tools = [
        {"name": str(tool.get("name")), "description": tool.get("description"), "parameters": tool.get("input_schema")}
        for tool in tools
    ]
    choice = checks.member(body, "tool_choice")
    kind = str(choice.get("type", "auto" if tools else "none"))
    wanted = str(choice.get("name")) if kind == "tool" else {"any": "required"}.get(kind, kind)
    if tools and wanted == "auto" and not engine.arguments.auto_tool_choice:
        raise ApiError('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    if tools and wanted not in ("auto", "none") and not engine.arguments.tool_call_parser:
        raise ApiError(f'tool_choice="{wanted}" requires --tool-call-parser to be set')
    conversation.tool_choice = wanted
    off = checks.member(body, "thinking").get("type") == "disabled"
    conversation.thinks = bool(engine.arguments.reasoning_parser) and not off
    return conversation


def _text(content: Any, where: str) -> tuple[str, int, bool]:
    """The text of a message, how many pictures it has, and whether it is the result of a tool."""
    if content is None:
        return "", 0, False
    if isinstance(content, str):
        return content, 0, False
    if not isinstance(content, list):
        raise InvalidBody("string_type", where, "Input should be a valid string", content)
    said, images, result = [], 0, False
    for place, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            said.append(str(block.get("text", "")))
        elif kind in ("image", "document"):
            images += 1
        elif kind == "tool_result":
            inner, seen, _ = _text(block.get("content"), f"{where}.{place}.content")
            said.append(inner)
            images, result = images + seen, True
        elif kind == "tool_use":
            said.append(serving.dump({"name": block.get("name"), "input": block.get("input")}))
        elif kind in ("thinking", "redacted_thinking"):
            continue
        else:
            raise InvalidBody("literal_error", f"{where}.{place}.type", "Input should be a known content block", kind)
    return "\n".join(said), images, result
