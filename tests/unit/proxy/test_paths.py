"""No spelling of a path reaches what is not in the table, and the table's own spelling is what is forwarded."""

from __future__ import annotations

import pytest

from proxy.errors import HttpError
from proxy.paths import parse_target
from tests.unit.proxy.harness import rig


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/echo", "/v1/echo"),
        ("//v1//echo", "/v1/echo"),
        ("/v1/./echo", "/v1/echo"),
        ("/v1/x/../echo", "/v1/echo"),
        ("/../../v1/echo", "/v1/echo"),
        ("/%76%31/%65cho", "/v1/echo"),
        ("/v1%2Fecho", "/v1/echo"),
        ("/v1/%2e/echo", "/v1/echo"),
        ("/v1/x/%2E%2e/echo", "/v1/echo"),
        ("/v1/x%2f..%2fecho", "/v1/echo"),
        ("http://h/v1/echo", "/v1/echo"),
        ("HTTPS://h:1//v1/echo", "/v1/echo"),
        ("http://[::1]:80/v1/echo", "/v1/echo"),
        ("http://h", "/"),
        ("http://h?x", "/"),
        ("/v1/echo/", "/v1/echo/"),
        ("/v1/echo/.", "/v1/echo/"),
        ("/v1/echo/..", "/v1/"),
        ("/V1/ECHO", "/V1/ECHO"),
        ("/v1/%2565cho", "/v1/%65cho"),
        ("/v1/echo;x", "/v1/echo;x"),
        ("/v1/echo%3Fx", "/v1/echo?x"),
        ("/v1/echo%23x", "/v1/echo#x"),
        ("/v1/%C3%A9cho", "/v1/écho"),
        ("/", "/"),
        ("//", "/"),
    ],
)
def test_one_spelling(target: str, path: str) -> None:
    assert parse_target(target.encode())[0] == path


@pytest.mark.parametrize("target", ["/v1\\echo", "/v1/%5cecho", "/v1/..%5cecho", "/%", "/%4", "/a%0a", "/%ff"])
def test_refused(target: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_target(target.encode())
    assert caught.value.status == 400


CONTROL = [
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/pause",
    "/resume",
    "/reset_prefix_cache",
    "/v1/load_lora_adapter",
]
TRICKS = [
    lambda p: p,
    lambda p: "/" + p,
    lambda p: "/v1/echo/../.." + p,
    lambda p: "/v1/echo/%2e%2e/%2E%2E" + p,
    lambda p: "/v1/echo%2f..%2f.." + p,
    lambda p: "/v1/echo/..;/.." + p,
    lambda p: "/%" + f"{ord(p[1]):02x}" + p[2:],
    lambda p: "/%25" + f"{ord(p[1]):02x}" + p[2:],
    lambda p: p.upper(),
    lambda p: p + "/",
    lambda p: p + "?level=1",
    lambda p: p + "%3flevel=1",
    lambda p: p + ";x=1",
    lambda p: p + "%20",
    lambda p: "/." + p,
    lambda p: "http://127.0.0.1:8000" + p,
    lambda p: "http://127.0.0.1:8000/v1/echo/../.." + p,
    lambda p: "/v1/echo?x=/../.." + p,
    lambda p: "/v1/echo%3f/../.." + p,
    lambda p: "/v1/echo%23" + p,
    lambda p: "/v1/echo%0d%0aX:" + p,
]  # fmt: skip


async def test_no_trick_reaches_a_control_path() -> None:
    async with rig() as r:
        for path in CONTROL:
            for trick in TRICKS:
                target = trick(path)
                for method in (b"POST", b"GET"):
                    await r.ask(method + b" " + target.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        lines = {head.split(b"\r\n")[0].split(b" ")[1].partition(b"?")[0] for head, _ in r.upstream.requests}
        assert lines == {b"/v1/echo"}, "some tricks are spellings of a public path: that is what is forwarded"
