"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from localcluster.engine import checks, serving, tokens
from localcluster.engine.answers import Answer, Conversation, Limits, answer, completion
from localcluster.engine.checks import Body
from localcluster.engine.engine import Engine
from localcluster.engine.errors import ApiError, InvalidBody
from localcluster.engine.http import Request, Response, json_response
from localcluster.engine.serving import Finished

_FINGERPRINT = "vllm-0.32.0-simulated"
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


async def chat_completions(engine: Engine, request: Request) -> Response:
    """A chat, whole or as a stream."""
    body = checks.json_body(request)
    messages = checks.objects(body, "messages")
    name = serving.model_name(engine, body)
    checks.temperature(body)
    count = checks.choices(body)
    if not messages:
        raise ApiError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    conversation = _conversation(engine, body, messages)
    asked = checks.whole(body, "max_completion_tokens", None) or checks.whole(body, "max_tokens", None)
    if body.get("max_tokens") == 0:
        asked = 0
    bounds = checks.limits(body, asked, conversation.prompt_tokens, engine.arguments.max_model_len)
    answers = [answer(name, conversation, bounds, index) for index in range(count)]
    # A function that was named by the client ends the answer in the ordinary way.
    if conversation.tool_choice not in ("auto", "required"):
        for one in answers:
            one.finish_reason = "stop" if one.finish_reason == "tool_calls" else one.finish_reason
    serving.ordered_fault(request)
    if body.get("stream"):
        return serving.openai_stream(_chat_stream(engine, request, body, name, conversation.prompt_tokens, answers))
    async with serving.working(engine, request, conversation.prompt_tokens) as work:
        finished = await serving.collect(engine, work, answers)
    choices = [
        {
            "index": index,
            "message": _message(one),
            "logprobs": _chat_logprobs(one.tokens, body) if body.get("logprobs") else None,
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            "token_ids": None,
            "routed_experts": None,
        }
        for index, one in enumerate(finished)
    ]
    return json_response({
        "id": serving.new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": serving.now(),
        "model": name,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": _FINGERPRINT,
        "usage": serving.usage(work),
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    })  # fmt: skip


async def _chat_stream(
    engine: Engine, request: Request, body: Body, name: str, prompt_tokens: int, answers: list[Answer]
) -> AsyncGenerator[bytes, None]:
    head = {
        "id": serving.new_id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": serving.now(),
        "model": name,
    }

    def chunk(index: int, delta: Body, finish: str | None = None, stop: str | None = None) -> bytes:
        choice: Body = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = stop
        return serving.data({**head, "choices": [choice]})

    async with serving.working(engine, request, prompt_tokens) as work:
        started: set[int] = set()
        called: dict[int, str] = {}
        left: list[int] = []
        async for event in serving.events(engine, work, answers):
            index = event.index
            if not left:
                left = [one.generated for one in answers]
            if index not in started:
                started.add(index)
                yield chunk(index, {"role": "assistant", "content": ""})
            left[index] -= 1
            one = answers[index]
            if event.kind == "tool" and index not in called:
                called[index] = serving.new_id("chatcmpl-tool-")
                function = {"name": one.tool, "arguments": ""}
                call = {"index": 0, "id": called[index], "type": "function", "function": function}
                yield chunk(index, {"tool_calls": [call]})
            delta: Body = {event.kind: event.text}
            if event.kind == "tool":
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": event.text}}]}
            if left[index]:
                yield chunk(index, delta)
            else:
                yield chunk(index, delta, one.finish_reason, one.stop_reason)
        for index, one in enumerate(answers):
            if index not in started:
                yield chunk(index, {"role": "assistant", "content": ""})
            if work.aborted and (not left or left[index]):
                yield chunk(index, {}, "abort")
            elif not one.generated:
                yield chunk(index, {}, one.finish_reason, one.stop_reason)
    if _wants_usage(engine, body):
        yield serving.data({**head, "choices": [], "usage": serving.usage(work, details=False)})


def _message(one: Finished) -> Body:
    message: Body = {
        "role": "assistant",
        "content": one.content or (None if one.tool or one.reasoning else ""),
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": one.reasoning or None,
    }
    if one.tool:
        function = {"name": one.tool, "arguments": one.tool_arguments}
        message["tool_calls"] = [{"id": serving.new_id("chatcmpl-tool-"), "type": "function", "function": function}]
    return message


def _conversation(engine: Engine, body: Body, messages: list[Body]) -> Conversation:
    """Read the messages, tools and wishes of a chat."""
    parts, images, said = [], 0, ""
    for place, message in enumerate(messages):
        role = message.get("role")
        if role not in _ROLES:
            raise InvalidBody("literal_error", f"body.messages.{place}.role", f"Input should be one of {_ROLES}", role)
        said, seen = content_text(message.get("content"), f"body.messages.{place}.content")
        images += seen
        calls = message.get("tool_calls")
        parts.append(f"<|im_start|>{role}\n{said}{serving.dump(calls) if calls else ''}<|im_end|>\n")
    choice, tools = tool_choice(engine, body)
    conversation = Conversation("".join(parts) + "<|im_start|>assistant\n", said, str(messages[-1]["role"]), images)
    conversation.tools, conversation.tool_choice = tools, choice
    response_format = checks.member(body, "response_format")
    conversation.schema, conversation.choices = structure(response_format, checks.member(body, "structured_outputs"))
    template = checks.member(body, "chat_template_kwargs")
    off = template.get("enable_thinking") is False or body.get("reasoning_effort") == "none"
    conversation.thinks = bool(engine.arguments.reasoning_parser) and not off
    return conversation


def structure(response_format: Body, structured: Body) -> tuple[Any, list[str]]:
    """The schema, or the choices, that the answer must follow."""
    kind = response_format.get("type", "text")
    if kind == "json_schema":
        schema = response_format.get("json_schema", {}).get("schema", response_format.get("schema"))
        if schema is None:
            raise ApiError("response_format json_schema needs a schema", param="response_format")
        return schema, []
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}, []
    if kind != "text":
        raise InvalidBody(
            "literal_error", "body.response_format.type", "Input should be 'text', 'json_object' or 'json_schema'", kind
        )
    if structured.get("json") is not None:
        return structured["json"], []
    return None, [str(one) for one in structured.get("choice") or []]


def tool_choice(engine: Engine, body: Body) -> tuple[str, list[Body]]:
    """What `tools` and `tool_choice` ask for: `none`, `auto`, `required` or a name, and the functions."""
    functions = []
    for place, tool in enumerate(checks.objects(body, "tools", [])):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidBody("missing", f"body.tools.{place}.function", "Field required", tool)
        functions.append(function)
    choice = body.get("tool_choice") or ("auto" if functions else "none")
    if isinstance(choice, dict):
        name = checks.member(choice, "function").get("name")
        if name not in [function["name"] for function in functions]:
            raise ApiError("The tool specified in `tool_choice` does not match any of the specified `tools`")
        if not engine.arguments.tool_call_parser:
            raise ApiError(f'tool_choice=function "{name}" requires --tool-call-parser to be set')
        return str(name), functions
    if choice not in ("none", "auto", "required"):
        raise ApiError(
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are supported.'
        )
    if choice != "none" and not functions:
        raise ApiError("When using `tool_choice`, `tools` must be set.")
    if choice == "auto" and not engine.arguments.auto_tool_choice:
        raise ApiError('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    if choice == "required" and not engine.arguments.tool_call_parser:
        raise ApiError('tool_choice="required" requires --tool-call-parser to be set')
    return str(choice), functions


def content_text(content: Any, where: str) -> tuple[str, int]:
    """The text of a message and how many pictures it has."""
    if content is None:
        return "", 0
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        raise InvalidBody("string_type", where, "Input should be a valid string", content)
    said, images = [], 0
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text", "refusal"):
            said.append(str(part.get("text") or part.get("refusal") or ""))
        elif kind in ("image_url", "input_image", "input_audio", "video_url", "audio_url", "file", "image_embeds"):
            images += 1
        else:
            raise InvalidBody("literal_error", f"{where}.{place}.type", "Input should be a known content part", kind)
    return "\n".join(said), images


def _wants_usage(engine: Engine, body: Body) -> bool:
    return bool(checks.member(body, "stream_options").get("include_usage")) or engine.arguments.force_include_usage


def _chat_logprobs(said: list[str], body: Body) -> Body:
    wanted = checks.whole(body, "top_logprobs", 0) or 0

    def one(token: str) -> Body:
        return {"token": token, "logprob": -0.125, "bytes": list(token.encode())}

    return {"content": [{**one(token), "top_logprobs": [one(token)] * min(wanted, 1)} for token in said]}


async def completions(engine: Engine, request: Request) -> Response:
    """The continuation of one or several texts."""
    body = checks.json_body(request)
    prompts = checks.prompts(body, "prompt")
    name = serving.model_name(engine, body)
    checks.temperature(body)
    count = checks.choices(body)
    # OpenAI's default for this old endpoint.
    asked = checks.whole(body, "max_tokens", 16)
    counted = [tokens.count(prompt) for prompt in prompts]
    bounds = [checks.limits(body, asked, one, engine.arguments.max_model_len) for one in counted]
    pairs = [(prompt, bound) for prompt, bound in zip(prompts, bounds, strict=True) for _ in range(count)]
    answers = [_continue(body, prompt, bound, place % count) for place, (prompt, bound) in enumerate(pairs)]
    if body.get("echo"):
        for (prompt, _), one in zip(pairs, answers, strict=True):
            one.content = [prompt, *one.content]
    serving.ordered_fault(request)
    if body.get("stream"):
        return serving.openai_stream(_completion_stream(engine, request, body, name, sum(counted), answers))
    async with serving.working(engine, request, sum(counted)) as work:
        finished = await serving.collect(engine, work, answers)
    choices = [
        {
            "index": index,
            "text": one.content,
            "logprobs": _completion_logprobs(one.tokens) if body.get("logprobs") is not None else None,
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
        for index, one in enumerate(finished)
    ]
    return json_response({
        "id": serving.new_id("cmpl-"),
        "object": "text_completion",
        "created": serving.now(),
        "model": name,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": _FINGERPRINT,
        "usage": serving.usage(work),
        "kv_transfer_params": None,
    })  # fmt: skip


def _continue(body: Body, prompt: str, bound: Limits, variant: int) -> Answer:
    schema, choices = structure(checks.member(body, "response_format"), checks.member(body, "structured_outputs"))
    if schema is None and not choices:
        return completion(prompt, bound, variant)
    return answer("", Conversation(prompt, prompt, schema=schema, choices=choices), bound, variant)


async def _completion_stream(
    engine: Engine, request: Request, body: Body, name: str, prompt_tokens: int, answers: list[Answer]
) -> AsyncGenerator[bytes, None]:
    head = {"id": serving.new_id("cmpl-"), "object": "text_completion", "created": serving.now(), "model": name}

    def chunk(index: int, said: str, finish: str | None, stop: str | None = None) -> bytes:
        choice = {"index": index, "text": said, "logprobs": None, "finish_reason": finish, "stop_reason": stop}
        return serving.data({**head, "choices": [choice]})

    async with serving.working(engine, request, prompt_tokens) as work:
        left = [one.generated for one in answers]
        async for event in serving.events(engine, work, answers):
            one = answers[event.index]
            left[event.index] -= 1
            last = not left[event.index]
            yield chunk(event.index, event.text, one.finish_reason if last else None, one.stop_reason if last else None)
        for index, one in enumerate(answers):
            if left[index] or not one.generated:
                yield chunk(index, "", "abort" if work.aborted else one.finish_reason, one.stop_reason)
    if _wants_usage(engine, body):
        yield serving.data({**head, "choices": [], "usage": serving.usage(work, details=False)})


def _completion_logprobs(said: list[str]) -> Body:
    offsets = [0]
    for token in said:
        offsets.append(offsets[-1] + len(token))
    return {
        "text_offset": offsets[:-1],
        "token_logprobs": [-0.125] * len(said),
        "tokens": said,
        "top_logprobs": [{token: -0.125} for token in said],
    }
