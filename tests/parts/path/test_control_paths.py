"""No spelling of an engine's control path gets through sidecar and gateway: they know a list of paths, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from proxy.endpoints import MODEL_PATHS
from tests.parts.path.world import MODEL, path

#: What vLLM answers, in development mode or not, that is no client's business.
CONTROL = [
    "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/collective_rpc",
    "/release_kv_cache_memory", "/abort_requests", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache",
    "/server_info", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update",
    "/weight_info", "/weight_checker", "/get_world_size", "/scale_elastic_ep", "/is_scaling_elastic_ep",
    "/start_profile", "/stop_profile", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/load_lora_adapter",
    "/unload_lora_adapter", "/inference/v1/generate", "/generative_scoring", "/load", "/version", "/ping", "/docs",
    "/openapi.json", "/redoc", "/v1/responses/resp_1/cancel", "/v1/chat/completions/render", "/tokenizer_info",
    "/v1/files", "/v1/realtime", "/v1/chat/completions/batch", "/derender",
]  # fmt: skip

PUBLIC = "/v1/completions"
TRICKS: dict[str, Callable[[str], str]] = {
    "as it is": lambda p: p,
    "two slashes": lambda p: "/" + p,
    "three slashes": lambda p: "//" + p,
    "slashes inside": lambda p: p.replace("/", "//"),
    "a dot segment": lambda p: "/." + p,
    "out of a public path": lambda p: f"{PUBLIC}/../..{p}",
    "out of a public path, past the root": lambda p: f"{PUBLIC}/../../../../..{p}",
    "out of a public path, encoded dots": lambda p: f"{PUBLIC}/%2e%2e/%2E%2E{p}",
    "out of a public path, encoded slashes": lambda p: f"{PUBLIC}%2f..%2f..{p}",
    "out of a public path, all encoded": lambda p: f"{PUBLIC}%2f%2e%2e%2f%2e%2e%2f{p[1:]}",
    "out of a public path, doubly encoded": lambda p: f"{PUBLIC}%252f..%252f..{p}",
    "out of a public path, mixed dots": lambda p: f"{PUBLIC}/.%2e/%2e.{p}",
    "out of a public path, parameters": lambda p: f"{PUBLIC}/..;/..;{p}",
    "out of a public path, backslashes": lambda p: f"{PUBLIC}\\..\\..{p}",
    "out of a public path, encoded backslashes": lambda p: f"{PUBLIC}%5c..%5c..{p}",
    "below a public path": lambda p: PUBLIC + p,
    "an encoded letter": lambda p: f"/%{ord(p[1]):02x}{p[2:]}",
    "all encoded": lambda p: "/" + "".join(f"%{ord(c):02X}" for c in p[1:]),
    "doubly encoded": lambda p: f"/%25{ord(p[1]):02x}{p[2:]}",
    "triply encoded": lambda p: f"/%2525{ord(p[1]):02x}{p[2:]}",
    "an encoded first slash": lambda p: "/%2f" + p[1:],
    "capitals": str.upper,
    "a capital": lambda p: p.title(),
    "a slash at the end": lambda p: p + "/",
    "an encoded slash at the end": lambda p: p + "%2f",
    "a dot at the end": lambda p: p + "/.",
    "a query": lambda p: p + "?level=1",
    "an encoded query": lambda p: p + "%3flevel=1",
    "a parameter": lambda p: p + ";x=1",
    "a space at the end": lambda p: p + "%20",
    "a NUL at the end": lambda p: p + "%00",
    "a line break": lambda p: f"{PUBLIC}%0d%0aPOST%20{p}",
    "an overlong slash": lambda p: f"{PUBLIC}%c0%af..%c0%af..{p}",
    "a full-width slash": lambda p: f"{PUBLIC}%ef%bc%8f..%ef%bc%8f..{p}",
    "a fragment": lambda p: p + "#x",
    "an encoded fragment": lambda p: f"{PUBLIC}%23/../..{p}",
    "in the query": lambda p: f"{PUBLIC}?x=/../..{p}",
    "in the query, as a path": lambda p: f"{PUBLIC}?/..{p}",
    "an encoded question mark": lambda p: f"{PUBLIC}%3f/../..{p}",
    "absolute": lambda p: f"http://127.0.0.1:8000{p}",
    "absolute, in capitals": lambda p: f"HTTP://localhost{p}",
    "absolute, out of a public path": lambda p: f"http://127.0.0.1:8000{PUBLIC}/../..{p}",
    "absolute, another scheme": lambda p: f"https://x{p}",
    "absolute, with user information": lambda p: f"http://a@b{p}",
    "without a slash": lambda p: p[1:],
    "an authority": lambda p: f"//127.0.0.1:8000{p}",
    "a tilde": lambda p: f"/~{p}",
}


def allowed(head: bytes) -> bool:
    """A request line that an engine may see: POST of a public path, exactly."""
    method, target, version = head.split(b"\r\n")[0].split(b" ")
    return method == b"POST" and target.partition(b"?")[0].decode() in MODEL_PATHS and version == b"HTTP/1.1"


async def drive(port: int, requests: list[bytes]) -> None:
    """Sends each request; the next one on the same connection if that is still open. Answers are read and dropped."""
    reader = writer = None
    for data in requests:
        if writer is None or reader is None or reader.at_eof():
            if writer is not None:
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        await reader.readexactly(0 if data.startswith(b"HEAD ") else length)
        if b"\r\nConnection: close\r\n" in head:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


BODY = b'{"model":"llama"}'
METHODS = ("POST", "GET")


@pytest.mark.parametrize("where", ["the sidecar", "the gateway, by model", "the gateway, by namespace", "the gateway"])
async def test_no_trick_reaches_a_control_path(where: str) -> None:
    async with path() as p:
        port, prefix = p.ports()[where]
        requests = []
        for control in CONTROL:
            for trick in TRICKS.values():
                for place in dict.fromkeys((prefix + trick(control), trick(prefix + control), trick(control))):
                    target = place.encode("latin-1")
                    requests += [
                        b"%b %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
                        % (method.encode(), target, len(BODY), BODY)
                        for method in METHODS
                    ]
        await drive(port, requests)
        assert [head for head, _ in p.engine.requests if not allowed(head)] == []
        assert p.engine.requests, "a spelling of a public path is one: it is forwarded as that"


@pytest.mark.parametrize(
    "method", ["POST", "GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "post", "BREW"]
)
async def test_no_method_and_no_version_reaches_a_control_path(method: str) -> None:
    async with path() as p:
        for port, prefix in p.ports().values():
            requests = []
            for control in CONTROL:
                for target in (prefix + control, "127.0.0.1:8000" if method == "CONNECT" else control):
                    line = f"{method} {target} ".encode()
                    requests += [
                        line + b"HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
                        line + b"HTTP/1.0\r\n\r\n",
                        line + b"HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nX-HTTP-Method-Override: POST\r\n"
                        b"X-Original-URL: /sleep\r\nX-Rewrite-URL: /sleep\r\nContent-Length: 0\r\n\r\n",
                    ]
            await drive(port, requests)
        assert p.engine.requests == []


def smuggled(control: str) -> list[bytes]:
    """Requests that carry a second one for another parser than ours to find."""
    inner = f"POST {control} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    head = f"POST /{MODEL}{PUBLIC} HTTP/1.1\r\nHost: x\r\n".encode()
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    return [
        head + b"Content-Length: 0\r\n\r\n" + inner,
        head + b"Content-Length: %d\r\n\r\n" % len(inner) + inner,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk,
        head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
        head + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
        head + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n" + inner,
        head + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner,
        head + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner,
        head + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner,
        head + b"Content-Length: 0\n\n" + inner,
        head + b"X-A: b\r\n\r\n" + inner,
        head + b"X-A: b\n\n" + inner,
        head + b"X-A: \r\n\r\n" + inner,
        head + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n" + inner,
        head + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n" + inner,
        head + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-T: 1\r\n\r\n" + inner,
        head + b'Transfer-Encoding: chunked\r\n\r\n0;a="\r\n\r\n' + inner,
        b"GET /"
        + MODEL.encode()
        + b"/v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
        + inner,
    ]


async def send(port: int, data: bytes) -> None:
    """All at once, and a last request that ends the connection; reads until it has ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()


async def test_a_second_request_in_the_first_is_routed_like_any_or_never_seen() -> None:
    async with path() as p:
        for control in CONTROL[:4]:
            for data in smuggled(control):
                await send(p.gateway_port, data)
                await send(p.sidecar_port, data.replace(f"/{MODEL}".encode(), b""))
        assert [head for head, _ in p.engine.requests if not allowed(head)] == []
        assert p.engine.requests


async def test_every_public_path_is_reached() -> None:
    """The table above could pass with nothing forwarded at all."""
    async with path() as p:
        for port, prefix in p.ports().values():
            before = len(p.engine.requests)
            await drive(
                port,
                [
                    f"POST {prefix}{public} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
                    for public in sorted(MODEL_PATHS)
                ],
            )
            assert len(p.engine.requests) - before == len(MODEL_PATHS)
