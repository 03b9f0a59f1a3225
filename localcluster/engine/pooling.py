"""Embeddings, scores, ranks and classes: one answer for each text, no stream."""

from __future__ import annotations

import base64
import struct
from typing import Any

from localcluster.engine import checks, serving, tokens
from localcluster.engine.answers import similarity, vector
from localcluster.engine.checks import Body
from localcluster.engine.engine import Engine, Work
from localcluster.engine.errors import ApiError, InvalidBody
from localcluster.engine.http import Request, Response, json_response

_DIMENSIONS = 384
_LABELS = ("LABEL_0", "LABEL_1")
_MAX_TEXTS = 4096


async def embeddings(engine: Engine, request: Request) -> Response:
    """A vector of length 1 for each text; as numbers or in base64."""
    body = checks.json_body(request)
    texts = _inputs(body)
    dimensions = checks.whole(body, "dimensions", _DIMENSIONS) or 0
    if not 1 <= dimensions <= 8192:
        raise ApiError(f"dimensions must be from 1 to 8192, got {dimensions}", param="dimensions")
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise InvalidBody("literal_error", "body.encoding_format", "Input should be 'float' or 'base64'", encoding)
    name, work = await _run(engine, request, body, texts)
    data: list[Body] = []
    for index, text in enumerate(texts):
        found: Any = vector(text, dimensions)
        if encoding == "base64":
            found = base64.b64encode(struct.pack(f"<{dimensions}f", *found)).decode()
        data.append({"index": index, "object": "embedding", "embedding": found})
    return _list("embd-", name, data, work)


async def score(engine: Engine, request: Request) -> Response:
    """How well each second text fits the first, from 0 to 1."""
    body = checks.json_body(request)
    first = _texts(body, "text_1" if "text_1" in body else "queries")
    second = _texts(body, "text_2" if "text_2" in body else "documents")
    if len(first) not in (1, len(second)):
        raise ApiError("Input lengths must be either 1:1, 1:N or N:N")
    pairs = list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))
    name, work = await _run(engine, request, body, [*first, *second])
    data = [
        {"index": index, "object": "score", "score": similarity(one, other)} for index, (one, other) in enumerate(pairs)
    ]
    return _list("score-", name, data, work)


async def rerank(engine: Engine, request: Request) -> Response:
    """The documents in the order in which they fit the query."""
    body = checks.json_body(request)
    query = checks.text(body, "query")
    documents = _texts(body, "documents")
    name, work = await _run(engine, request, body, [query, *documents])
    scored = sorted(
        (-similarity(query, document), index, document) for index, document in enumerate(documents)
    )  # fmt: skip
    top = checks.whole(body, "top_n", 0) or len(scored)
    results = [
        {"index": index, "document": {"text": document, "multi_modal": None}, "relevance_score": -negative}
        for negative, index, document in scored[:top]
    ]
    counts = {"prompt_tokens": work.prompt_tokens, "total_tokens": work.prompt_tokens}
    return json_response({"id": serving.new_id("rerank-"), "model": name, "usage": counts, "results": results})


async def classify(engine: Engine, request: Request) -> Response:
    """One of two classes for each text."""
    body = checks.json_body(request)
    texts = _inputs(body)
    name, work = await _run(engine, request, body, texts)
    data: list[Body] = []
    for index, text in enumerate(texts):
        first = round((vector(text, 16)[0] + 1) / 2, 6)
        probs = [first, 1 - first]
        label = _LABELS[probs.index(max(probs))]
        data.append({"index": index, "label": label, "probs": probs, "num_classes": 2})
    return _list("classify-", name, data, work)


async def pooling(engine: Engine, request: Request) -> Response:
    """A vector for each token of each text."""
    body = checks.json_body(request)
    texts = _inputs(body)
    name, work = await _run(engine, request, body, texts)
    data: list[Body] = [
        {"index": index, "object": "pooling", "data": [vector(token, 16) for token in tokens.split(text)]}
        for index, text in enumerate(texts)
    ]
    return _list("pool-", name, data, work)


async def _run(engine: Engine, request: Request, body: Body, texts: list[str]) -> tuple[str, Work]:
    """Check the model and the lengths, and take the time of one step."""
    name = serving.model_name(engine, body)
    counts = [tokens.count(text) for text in texts]
    for count in counts:
        checks.limits({}, None, count, engine.arguments.max_model_len)
    async with serving.working(engine, request, sum(counts)) as work:
        async for _ in engine.steps(work, [[]]):
            pass
        if work.aborted:
            raise ApiError("The request was aborted: the engine was put to sleep", 500, "InternalServerError")
    return name, work


def _inputs(body: Body) -> list[str]:
    if "messages" in body:
        return [serving.dump(checks.objects(body, "messages"))]
    return _texts(body, "input")


def _texts(body: Body, name: str) -> list[str]:
    value = checks.required(body, name)
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        value = [one.get("text", serving.dump(one)) if isinstance(one, dict) else one for one in value]
    texts = checks.prompts({name: value}, name)
    if len(texts) > _MAX_TEXTS:
        raise ApiError(f"{name} has {len(texts)} items; the most is {_MAX_TEXTS}", param=name)
    return texts


def _list(prefix: str, name: str, data: list[Body], work: Work) -> Response:
    return json_response({
        "id": serving.new_id(prefix),
        "object": "list",
        "created": serving.now(),
        "model": name,
        "data": data,
        "usage": serving.usage(work),
    })  # fmt: skip
