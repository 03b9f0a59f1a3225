"""Every path of the simulated engine's API server, and what it answers to a wrong one."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

from localcluster.engine import anthropic_api, audio, chat, checks, pooling, responses_api, serving, tokens
from localcluster.engine.arguments import VERSION
from localcluster.engine.engine import Engine, WorkerError
from localcluster.engine.errors import ApiError, InvalidBody
from localcluster.engine.http import Request, Response, json_response

log = logging.getLogger(__name__)

Endpoint = Callable[[Engine, Request], Awaitable[Response]]
_MODES = ("abort", "wait", "keep")


class Server:
    """The API server in front of one engine. The control paths are there only in development mode, as in vLLM."""

    def __init__(self, engine: Engine, dev_mode: bool) -> None:
        self.engine = engine
        self.routes: dict[str, dict[str, Endpoint]] = {**_PUBLIC, **(_CONTROL if dev_mode else {})}

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        methods = self.routes.get(request.path)
        if methods is None:
            return json_response({"detail": "Not Found"}, 404)
        endpoint = methods.get(request.method)
        if endpoint is None:
            return json_response({"detail": "Method Not Allowed"}, 405, {"allow": ", ".join(methods)})
        try:
            response = await endpoint(self.engine, request)
        except ApiError as error:
            response = error.response(anthropic=request.path.startswith("/v1/messages"))
        if self.engine.arguments.request_id_headers and "x-request-id" in request.headers:
            response.headers["x-request-id"] = request.headers["x-request-id"]
        return response


async def health(engine: Engine, request: Request) -> Response:
    """200 while the engine lives, asleep or not."""
    return Response(503 if engine.dead.is_set() else 200)


async def version(engine: Engine, request: Request) -> Response:
    """The version of vLLM that is simulated."""
    return json_response({"version": VERSION})


async def metrics(engine: Engine, request: Request) -> Response:
    """Prometheus' text."""
    text = engine.metrics.text(engine.sleep_state)
    return Response(body=text.encode(), content_type="text/plain; version=1.0.0; charset=utf-8")


async def models(engine: Engine, request: Request) -> Response:
    """The served names."""
    arguments, now = engine.arguments, serving.now()
    permission = {
        "object": "model_permission", "created": now, "allow_create_engine": False, "allow_sampling": True,
        "allow_logprobs": True, "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False,
        "organization": "*", "group": None, "is_blocking": False,
    }  # fmt: skip
    cards = [
        {
            "id": name, "object": "model", "created": now, "owned_by": "vllm", "root": arguments.model, "parent": None,
            "max_model_len": arguments.max_model_len,
            "permission": [{"id": serving.new_id("modelperm-"), **permission}],
        }
        for name in arguments.served_names
    ]  # fmt: skip
    return json_response({"object": "list", "data": cards})


async def tokenize(engine: Engine, request: Request) -> Response:
    """The tokens of a text or of a chat."""
    body = checks.json_body(request)
    serving.model_name(engine, body)
    if "messages" in body:
        said = [
            (message.get("role"), chat.content_text(message.get("content"), "body.messages")[0])
            for message in checks.objects(body, "messages")
        ]
        parts = [f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said]
        text = "".join(parts) + ("" if body.get("add_generation_prompt") is False else "<|im_start|>assistant\n")
    else:
        text = checks.text(body, "prompt")
    numbers = tokens.encode(text)
    strings = tokens.split(text) if body.get("return_token_strs") else None
    limit = engine.arguments.max_model_len
    return json_response({"count": len(numbers), "max_model_len": limit, "tokens": numbers, "token_strs": strings})


async def detokenize(engine: Engine, request: Request) -> Response:
    """The text of tokens."""
    body = checks.json_body(request)
    serving.model_name(engine, body)
    given = checks.items(body, "tokens")
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in given):
        raise InvalidBody("int_type", "body.tokens", "Input should be a valid integer", given)
    try:
        return json_response({"prompt": tokens.decode(given)})
    except (ValueError, OverflowError) as error:
        raise ApiError(str(error), param="tokens") from None


async def invocations(engine: Engine, request: Request) -> Response:
    """SageMaker's one address for all: the body's fields say which endpoint is meant."""
    body = checks.json_body(request)
    for field, endpoint in (
        ("messages", chat.chat_completions),
        ("prompt", chat.completions),
        ("text_1", pooling.score),
        ("query", pooling.rerank),
        ("input", pooling.embeddings),
    ):
        if field in body:
            return await endpoint(engine, request)
    return await chat.completions(engine, request)


# Control: only in development mode


async def sleep(engine: Engine, request: Request) -> Response:
    """POST /sleep?level=0|1|2&mode=abort|wait|keep."""
    given = (request.query.get("level") or ["1"])[-1]
    if not given.lstrip("-").isdigit():
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise InvalidBody("int_parsing", "query.level", message, given)
    level = int(given)
    if level > 2:
        raise InvalidBody("less_than_equal", "query.level", "Input should be less than or equal to 2", given, {"le": 2})
    if level < 0:
        raise InvalidBody(
            "greater_than_equal", "query.level", "Input should be greater than or equal to 0", given, {"ge": 0}
        )
    await engine.to_its_end(engine.sleep(level, _mode(request)))
    return json_response({"status": "sleeping", "level": level})


async def wake_up(engine: Engine, request: Request) -> Response:
    """POST /wake_up?tags=weights&tags=kv_cache."""
    tags = request.query.get("tags")
    awake = await engine.to_its_end(engine.wake_up(tags))
    return json_response({"status": "awake" if awake else "sleeping", "tags": tags})


async def is_sleeping(engine: Engine, request: Request) -> Response:
    """GET /is_sleeping."""
    return json_response({"is_sleeping": engine.is_sleeping})


async def pause(engine: Engine, request: Request) -> Response:
    """POST /pause?mode=abort|wait|keep."""
    await engine.to_its_end(engine.pause(_mode(request)))
    return json_response({"status": "paused"})


async def resume(engine: Engine, request: Request) -> Response:
    """POST /resume."""
    await engine.resume()
    return json_response({"status": "resumed"})


async def is_paused(engine: Engine, request: Request) -> Response:
    """GET /is_paused."""
    return json_response({"is_paused": engine.is_paused})


async def collective_rpc(engine: Engine, request: Request) -> Response:
    """POST /collective_rpc {"method": "reload_weights"}."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"JSON decode error: {error}", kind="Bad Request") from None
    if not isinstance(body, dict):
        raise ApiError("Request body must be a JSON object", kind="Bad Request")
    method = body.get("method")
    if method is None:
        raise ApiError("Missing 'method' in request body", kind="Bad Request")
    try:
        if method != "reload_weights":
            raise WorkerError(f"'Worker' object has no attribute '{method}'")
        await engine.to_its_end(engine.reload_weights())
    except WorkerError as error:
        message = (
            f"Call to collective_rpc method failed: Worker failed with error '{error}', please check the stack trace"
        )
        raise ApiError(f"{message} above for the root cause", 500, "InternalServerError") from None
    return json_response({"results": [None] * engine.arguments.tensor_parallel_size})


async def simulate(engine: Engine, request: Request) -> Response:
    """POST /simulate: order faults (see faults.py)."""
    try:
        return json_response(engine.faults.order(json.loads(request.body)))
    except ValueError as error:
        raise ApiError(str(error)) from None


def _mode(request: Request) -> str:
    mode = (request.query.get("mode") or ["abort"])[-1]
    if mode not in _MODES:
        expected = "'abort', 'wait' or 'keep'"
        raise InvalidBody("literal_error", "query.mode", f"Input should be {expected}", mode, {"expected": expected})
    return mode


_PUBLIC: dict[str, dict[str, Endpoint]] = {
    "/health": {"GET": health},
    "/ping": {"GET": health, "POST": health},
    "/version": {"GET": version},
    "/metrics": {"GET": metrics},
    "/v1/models": {"GET": models},
    "/tokenize": {"POST": tokenize},
    "/detokenize": {"POST": detokenize},
    "/v1/chat/completions": {"POST": chat.chat_completions},
    "/v1/completions": {"POST": chat.completions},
    "/v1/responses": {"POST": responses_api.responses},
    "/v1/messages": {"POST": anthropic_api.messages},
    "/v1/messages/count_tokens": {"POST": anthropic_api.count_tokens},
    "/v1/embeddings": {"POST": pooling.embeddings},
    "/pooling": {"POST": pooling.pooling},
    "/classify": {"POST": pooling.classify},
    "/score": {"POST": pooling.score},
    "/v1/score": {"POST": pooling.score},
    "/rerank": {"POST": pooling.rerank},
    "/v1/rerank": {"POST": pooling.rerank},
    "/v2/rerank": {"POST": pooling.rerank},
    "/v1/audio/transcriptions": {"POST": audio.transcriptions},
    "/v1/audio/translations": {"POST": audio.translations},
    "/v1/audio/speech": {"POST": audio.speech},
    "/invocations": {"POST": invocations},
}

_CONTROL: dict[str, dict[str, Endpoint]] = {
    "/sleep": {"POST": sleep},
    "/wake_up": {"POST": wake_up},
    "/is_sleeping": {"GET": is_sleeping},
    "/pause": {"POST": pause},
    "/resume": {"POST": resume},
    "/is_paused": {"GET": is_paused},
    "/collective_rpc": {"POST": collective_rpc},
    "/simulate": {"POST": simulate},
}
