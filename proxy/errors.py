"""Error answers in the shape of the API that was asked: OpenAI's, or Anthropic's on its paths."""

from __future__ import annotations

import json

_REASONS = {
    200: "OK",
    204: "No Content",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def reason(status: int) -> str:
    """The reason phrase of a status code ("Unknown" for one without)."""
    return _REASONS.get(status, "Unknown")


def is_anthropic(path: str) -> bool:
    """True for Anthropic's API: `…/v1/messages` and what is below it."""
    return path.endswith("/v1/messages") or "/v1/messages/" in path


def error_body(path: str, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
    """The JSON body of an error answer to a request for `path`."""
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


class HttpError(Exception):
    """A request that is answered with an error.

    status: HTTP status. message: for a person, says what to do. code: for a program. close: the connection ends
    with the answer, since what follows on it cannot be trusted.
    """

    def __init__(self, status: int, message: str, code: str | None = None, *, close: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.close = close


class UpstreamError(Exception):
    """The upstream's answer broke off or is not HTTP/1.1."""
