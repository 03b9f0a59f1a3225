"""Reading the fields of a request body, with pydantic's complaints."""

from __future__ import annotations

import json
from typing import Any

from localcluster.engine import tokens
from localcluster.engine.answers import Limits
from localcluster.engine.errors import ApiError, InvalidBody
from localcluster.engine.http import Request

Body = dict[str, Any]


def json_body(request: Request) -> Body:
    """The body, which must be a JSON object."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise InvalidBody("value_error", "body", "Unsupported Media Type: Only 'application/json' is allowed", None)
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))
        raise InvalidBody("json_invalid", "body.0", "JSON decode error", {}, {"error": reason}) from None
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise InvalidBody("model_attributes_type", "body", message, body)
    return body


def required(body: Body, name: str) -> Any:
    """A field that must be there."""
    if body.get(name) is None:
        raise InvalidBody("missing", f"body.{name}", "Field required", body)
    return body[name]


def text(body: Body, name: str, default: str | None = None) -> str:
    """A string; required when there is no default."""
    value = required(body, name) if default is None else body.get(name)
    if value is None:
        return str(default)
    if not isinstance(value, str):
        raise InvalidBody("string_type", f"body.{name}", "Input should be a valid string", value)
    return value


def items(body: Body, name: str, default: list[Any] | None = None) -> list[Any]:
    """A list; required when there is no default."""
    value = required(body, name) if default is None else body.get(name)
    if value is None:
        return list(default or [])
    if not isinstance(value, list):
        raise InvalidBody("list_type", f"body.{name}", "Input should be a valid list", value)
    return value


def whole(body: Body, name: str, default: int | None) -> int | None:
    """An integer."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.lstrip("-").isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidBody("int_type", f"body.{name}", "Input should be a valid integer", value)
    return value


def objects(body: Body, name: str, default: list[Any] | None = None) -> list[Body]:
    """A list of objects."""
    found = items(body, name, default)
    for place, item in enumerate(found):
        if not isinstance(item, dict):
            raise InvalidBody("dict_type", f"body.{name}.{place}", "Input should be a valid dictionary", item)
    return found


def member(body: Body, name: str) -> Body:
    """An object, empty when absent."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidBody("dict_type", f"body.{name}", "Input should be a valid dictionary", value)
    return value


def temperature(body: Body) -> None:
    """Refuse a negative temperature."""
    value = body.get("temperature")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidBody("float_type", "body.temperature", "Input should be a valid number", value)
    if value < 0:
        said = f"temperature must be non-negative, got {float(value)}. (parameter=temperature, value={float(value)})"
        raise ApiError(said, param="temperature")


def choices(body: Body) -> int:
    """`n`, how many answers are wanted."""
    count = whole(body, "n", 1) or 0
    if not 1 <= count <= 128:
        raise ApiError(f"n must be at least 1, got {count}. (parameter=n, value={count})", param="n")
    return count


def limits(body: Body, asked: int | None, prompt_tokens: int, max_model_len: int) -> Limits:
    """How long the answer may be, by what was asked and by what the context leaves."""
    longest = f"This model's maximum context length is {max_model_len} tokens. However, "
    if prompt_tokens >= max_model_len:
        least = max_model_len + 1
        raise ApiError(
            f"{longest}your prompt contains at least {least} input tokens, which exceeds this limit even without any "
            "output tokens. Please reduce the length of the input prompt. "
            f"(parameter=input_tokens, value={least})",
            param="input_tokens",
        )
    if asked is not None and asked < 1:
        raise ApiError(
            f"max_tokens must be at least 1, got {asked}. (parameter=max_tokens, value={asked})", param="max_tokens"
        )
    if asked is not None and asked > max_model_len:
        raise ApiError(
            f"max_tokens={asked} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
            f"tokens. (parameter=max_tokens, value={asked})",
            param="max_tokens",
        )
    if asked is not None and prompt_tokens + asked > max_model_len:
        raise ApiError(
            f"{longest}you requested {asked} output tokens and your prompt contains {prompt_tokens} input tokens, "
            f"for a total of {prompt_tokens + asked} tokens. Please reduce the length of the input prompt or the "
            f"number of requested output tokens. (parameter=input_tokens, value={prompt_tokens})",
            param="input_tokens",
        )
    stop = body.get("stop") or body.get("stop_sequences") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(one, str) for one in stop):
        raise InvalidBody("list_type", "body.stop", "Input should be a valid list", stop)
    return Limits(
        max_tokens=max_model_len - prompt_tokens if asked is None else asked,
        min_tokens=whole(body, "min_tokens", 0) or 0,
        ignore_eos=bool(body.get("ignore_eos")),
        stop=tuple(stop),
    )


def prompts(body: Body, name: str) -> list[str]:
    """One or several texts, each as a string or as token numbers."""
    value = body.get(name)
    if value is None or value in ("", []):
        raise ApiError(f"Either {name} or {name}_embeds must be provided and non-empty. (parameter={name})", param=name)
    given = value if isinstance(value, list) and not all(isinstance(one, int) for one in value) else [value]
    found = []
    for one in given:
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, list) and all(isinstance(number, int) and not isinstance(number, bool) for number in one):
            try:
                found.append(tokens.decode(one))
            except ValueError as error:
                raise ApiError(str(error), param=name) from None
        else:
            raise InvalidBody("string_type", f"body.{name}", "Input should be a valid string", one)
    return found
