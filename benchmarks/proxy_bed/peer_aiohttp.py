"""A reverse proxy in aiohttp, as one writes it: `peer_aiohttp.py PORT UPSTREAM_PORT`."""

import sys

import aiohttp
import uvloop
from aiohttp import web

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length"}


def make_app(upstream: str) -> web.Application:
    app = web.Application(client_max_size=64 * 2**20)

    async def session(app: web.Application):
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        app["http"] = aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout())
        yield
        await app["http"].close()

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        body = await request.read()
        url = upstream + request.path_qs
        async with app["http"].request(request.method, url, headers=headers, data=body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            if answer.content_length is not None:
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


if __name__ == "__main__":
    uvloop.install()
    app = make_app(f"http://127.0.0.1:{sys.argv[2]}")
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
