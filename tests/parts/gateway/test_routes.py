"""Addresses: which request reaches which Model's sidecar, and what is answered to those that reach none."""

from __future__ import annotations

import json

import pytest

from tests.parts.gateway.world import SYSTEM, World, request, world

CHAT = "/v1/chat/completions"


def pod(answer: object) -> str:
    assert answer.status == 200, answer  # type: ignore[attr-defined]
    return str(json.loads(answer.body)["pod"])  # type: ignore[attr-defined]


def error(answer: object) -> dict[str, str]:
    return json.loads(answer.body)["error"]  # type: ignore[attr-defined, no-any-return]


async def two_models(w: World) -> None:
    await w.model("llama", "meta/Llama-3")
    await w.model("qwen", "Qwen/Qwen3")
    await w.sidecar("llama")
    await w.sidecar("qwen")


async def test_one_url_per_model() -> None:
    async with world() as w:
        await two_models(w)
        assert pod(await w.post(f"/llama{CHAT}", {"model": "anything"})) == "llama-0"
        assert pod(await w.post(f"/qwen{CHAT}?x=1", {})) == "qwen-0"
        head, body = w.sidecars[1].requests[0]
        assert head.startswith(b"POST /v1/chat/completions?x=1 HTTP/1.1\r\n"), "the sidecar sees no prefix"
        assert body == b"{}"


async def test_namespace_and_model() -> None:
    async with world() as w:
        await two_models(w)
        assert pod(await w.post(f"/{SYSTEM}/qwen/v2/rerank", {})) == "qwen-0"
        assert (await w.post(f"/other/qwen{CHAT}", {})).status == 404


@pytest.mark.parametrize("name", ["llama", "meta/Llama-3", f"{SYSTEM}/llama"])
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/v2/rerank", "/score", "/tokenize"])
async def test_one_endpoint_for_all(name: str, path: str) -> None:
    async with world() as w:
        await two_models(w)
        value = {"messages": [{"role": "user", "content": 'a "model": "qwen" in the text'}], "model": name}
        assert pod(await w.post(path, value)) == "llama-0"
        assert json.loads(w.sidecars[0].requests[0][1]) == value


async def test_of_two_models_of_one_name_the_older_has_the_short_address() -> None:
    async with world() as w:
        await w.model("llama", "a/one", namespace="other")
        w.clock.advance(1)
        await w.model("llama", "a/two", namespace=SYSTEM)
        await w.sidecar("llama", "old", namespace="other")
        await w.sidecar("llama", "young", namespace=SYSTEM)
        assert pod(await w.post(f"/llama{CHAT}", {})) == "old"
        assert pod(await w.post(CHAT, {"model": "llama"})) == "old"
        assert pod(await w.post(f"/{SYSTEM}/llama{CHAT}", {})) == "young"
        assert pod(await w.post(CHAT, {"model": f"{SYSTEM}/llama"})) == "young"
        assert pod(await w.post(CHAT, {"model": "a/two"})) == "young"
        ids = [m["id"] for m in json.loads((await w.get("/v1/models")).body)["data"]]
        assert ids == [f"{SYSTEM}/llama", "a/two", "llama", "a/one"]


async def test_of_two_models_of_one_id_the_one_that_serves_is_asked_else_the_oldest() -> None:
    async with world() as w:
        await w.model("one", "same/id")
        w.clock.advance(1)
        await w.model("two", "same/id")
        await w.sidecar("one")
        await w.sidecar("two")
        assert pod(await w.post(CHAT, {"model": "same/id"})) == "one-0"
        await w.serving("two-0")
        assert pod(await w.post(CHAT, {"model": "same/id"})) == "two-0"
        await w.serving()
        assert pod(await w.post(CHAT, {"model": "same/id"})) == "one-0"


@pytest.mark.parametrize("text", ['name="model"', "name=model", 'name="model"; x=y'])
async def test_a_form_names_its_model(text: str) -> None:
    """Audio: multipart/form-data (RFC 7578), the file before or after the field, the bytes passed on as they came."""
    async with world() as w:
        await two_models(w)
        file = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n' + b"\x00\r\n--x\xff" * 500
        )
        field = b"--b\r\nContent-Disposition: form-data; " + text.encode() + b"\r\n\r\nqwen"
        for parts in ([file, field], [field, file]):
            body = b"\r\n".join([*parts, b"--b--\r\n"])
            answer = await w.ask(request("/v1/audio/transcriptions", body, 'multipart/form-data; boundary="b"'))
            assert pod(answer) == "qwen-0"
            assert w.sidecars[1].requests[-1][1] == body


BAD_BODIES = [
    (b"", "application/json", "invalid_json"),
    (b"{", "application/json", "invalid_json"),
    (b"[]", "application/json", "invalid_json"),
    (b"\xff", "application/json", "invalid_json"),
    (b"[" * 100_000, "application/json", "invalid_json"),
    (b"{}", "application/json", "no_model"),
    (b'{"model": 5}', "application/json", "no_model"),
    (b'{"model": ""}', "application/json", "no_model"),
    (b'{"model": "' + b"x" * 600 + b'"}', "application/json", "no_model"),
    (b"--b--\r\n", "multipart/form-data; boundary=b", "no_model"),
    (b"", "multipart/form-data; boundary=b", "no_model"),
    (b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\nqwen", "multipart/form-data; boundary=b", "no_model"),
    (b"x", "multipart/form-data", "invalid_form"),
]


@pytest.mark.parametrize(("body", "kind", "code"), BAD_BODIES)
async def test_a_body_without_a_model(body: bytes, kind: str, code: str) -> None:
    async with world() as w:
        await two_models(w)
        answer = await w.ask(request(CHAT, body, kind))
        assert (answer.status, error(answer)["code"]) == (400, code)
        assert error(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (CHAT, "lama"),
        (CHAT, "Llama-3"),
        (CHAT, "meta/llama-3"),
        ("/lama/v1/chat/completions", None),
        ("/other/llama/v1/models", None),
    ],
)
async def test_an_unknown_model_is_a_404_that_names_near_ones(path: str, name: str | None) -> None:
    async with world() as w:
        await two_models(w)
        answer = await w.post(path, {"model": name})
        assert (answer.status, error(answer)["code"]) == (404, "model_not_found")
        assert "'llama'" in error(answer)["message"]
        assert "qwen" not in error(answer)["message"]


async def test_an_unknown_model_in_anthropics_shape() -> None:
    async with world() as w:
        for path in ("/v1/messages", "/nobody/v1/messages"):
            answer = await w.post(path, {"model": "nobody"})
            assert answer.status == 404
            assert json.loads(answer.body)["type"] == "error"
            assert error(answer)["type"] == "not_found_error"


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/llama", "/llama/", "/llama/sleep", "/llama/wake_up", "/llama/v1/load_lora_adapter", "/llama/metrics",
     "/llama/v1/chat/completions/", "/sleep", "/collective_rpc", f"/{SYSTEM}/llama/pause", "/llama//is_sleeping",
     "/llama/%73leep", "/llama/v1/..%2fsleep", "/v1/x", "/LLAMA/v2/x"],
)  # fmt: skip
async def test_anything_else_is_a_404(path: str) -> None:
    async with world() as w:
        await two_models(w)
        answer = await w.post(path, {"model": "llama"})
        assert (answer.status, error(answer)["code"]) == (404, "not_found")
        assert all(not s.requests for s in w.sidecars)


async def test_other_methods_are_refused() -> None:
    async with world() as w:
        await two_models(w)
        answer = await w.get(f"/llama{CHAT}")
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        assert (await w.get(CHAT)).status == 405
        answer = await w.post("/v1/models", {})
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        options = await w.ask(f"OPTIONS /llama{CHAT} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), "OPTIONS")
        assert (options.status, options.headers["allow"]) == (204, "POST, OPTIONS")


async def test_models_are_listed_without_any_sidecar() -> None:
    async with world() as w:
        await w.model("llama", "meta/Llama-3")
        listed = json.loads((await w.get("/v1/models")).body)
        assert listed["object"] == "list"
        assert [m["id"] for m in listed["data"]] == ["llama", "meta/Llama-3"]
        assert (
            listed["data"][0].items() >= {"object": "model", "owned_by": "greenthread", "root": "meta/Llama-3"}.items()
        )
        assert listed["data"][0]["created"] > 1_700_000_000
        for path in ("llama", "meta/Llama-3", "meta%2FLlama-3"):
            assert json.loads((await w.get(f"/v1/models/{path}")).body)["root"] == "meta/Llama-3"
        assert (await w.get("/v1/models/nobody")).status == 404
        assert [m["id"] for m in json.loads((await w.get("/llama/v1/models")).body)["data"]] == [
            "llama",
            "meta/Llama-3",
        ]
        assert (await w.get("/llama/v1/models/meta/Llama-3")).status == 200


async def test_a_sidecars_probes_are_reached_under_its_models_address() -> None:
    async with world() as w:
        await two_models(w)
        assert pod(await w.get("/llama/status")) == "llama-0"
        assert pod(await w.get("/llama/ready")) == "llama-0"
        await w.remove_slice("llama")
        assert (await w.get("/llama/health")).status == 503, "nobody waits for a pod to ask how it is"


async def test_models_come_and_go() -> None:
    from greenthread.kube.resources import MODELS

    async with world() as w:
        await two_models(w)
        await w.client.delete(MODELS, "llama", SYSTEM)
        await w.until(lambda: (SYSTEM, "llama") not in w.gateway.directory.models)
        assert (await w.post(f"/llama{CHAT}", {})).status == 404
        await w.client.patch(MODELS, "qwen", {"spec": {"modelName": "Qwen/New"}}, namespace=SYSTEM)
        await w.until(lambda: w.gateway.directory.find("Qwen/New") is not None)
        assert pod(await w.post(CHAT, {"model": "Qwen/New"})) == "qwen-0"
        assert (await w.post(CHAT, {"model": "Qwen/Qwen3"})).status == 404
