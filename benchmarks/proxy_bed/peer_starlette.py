"""A reverse proxy in Starlette, httpx and uvicorn, as one writes it: `peer_starlette.py PORT UPSTREAM_PORT`."""

import contextlib
import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length"}


def make_app(upstream: str) -> Starlette:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)
    client = httpx.AsyncClient(base_url=upstream, limits=limits, timeout=None, trust_env=False)

    async def forward(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.raw if name.decode() not in HOP]
        url = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        asked = client.build_request(request.method, url, headers=headers, content=await request.body())
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name not in HOP}
        if "content-length" in answer.headers:
            body = b"".join([piece async for piece in answer.aiter_raw()])
            await answer.aclose()
            return Response(body, answer.status_code, kept)

        async def pieces():
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        return StreamingResponse(pieces(), answer.status_code, kept)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        await client.aclose()

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(
        make_app(f"http://127.0.0.1:{sys.argv[2]}"),
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False, loop="uvloop", http="httptools",
        timeout_keep_alive=75,
    )  # fmt: skip
