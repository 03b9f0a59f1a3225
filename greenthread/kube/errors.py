"""What can go wrong between us and the Kubernetes API, each with a message that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Mapping

from greenthread.kube.resources import Resource
from greenthread.names import GROUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class KubeError(Exception):
    """Anything that this package raises on purpose; `str()` of it is one line for people."""


class ConfigError(KubeError):
    """The kubeconfig (or the in-cluster account) cannot be used; the message says what to change."""


class Unreachable(KubeError):
    """The API server gave no (whole) answer: no connection, TLS failure, timeout. A write may have happened."""


class ApiError(KubeError):
    """The API server refused a request.

    `status`: HTTP status; `reason`: Kubernetes' word for it (`NotFound`); `message`: for people; `details`: of the
    Status object; `retry_after`: seconds, if the server named them.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        self.retry_after = retry_after


class Unauthorized(ApiError):
    """401: the server does not know who asks."""


class Forbidden(ApiError):
    """403: the server knows who asks and does not allow it."""


class NotFound(ApiError):
    """404: there is no such object."""


class NoSuchKind(NotFound):
    """404: the server does not know this kind of object at all (the CRDs are missing, say)."""


class Conflict(ApiError):
    """409: somebody wrote in between; read again, decide again."""


class AlreadyExists(Conflict):
    """409: an object of this name is there already."""


class Gone(ApiError):
    """410: the resourceVersion or continue token is too old; list again."""


class Invalid(ApiError):
    """422: schema, CEL rule or a JSON patch's `test` said no."""


class TooManyRequests(ApiError):
    """429: the server is busy; `retry_after` says when to come back."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_from_status(status: Mapping[str, Any], code: int = 0, retry_after: float | None = None) -> ApiError:
    """The exception for a `Status` object (a failed request's body, or the object of a watch's ERROR event)."""
    code = int(status.get("code") or code or 500)
    reason = str(status.get("reason") or "")
    details = status.get("details")
    details = details if isinstance(details, dict) else {}
    message = str(status.get("message") or reason or f"the API server answered {code}")
    if retry_after is None and details.get("retryAfterSeconds"):
        retry_after = float(details["retryAfterSeconds"])
    kind = AlreadyExists if code == 409 and reason == "AlreadyExists" else _BY_STATUS.get(code, ApiError)
    return kind(code, reason, message, details, retry_after)


def error_from_answer(
    status: int, headers: Mapping[str, str], body: bytes, verb: str, resource: Resource, where: str = ""
) -> ApiError:
    """The exception for an answer with an error status.

    `headers` in lower case; `verb` is RBAC's (`list`); `where` names the context and file the credentials came from.
    """
    decoded: Any = None
    try:
        decoded = json.loads(body)
    except ValueError:
        pass  # proxies and the API server's own 404 answer in plain text
    is_status = isinstance(decoded, dict) and decoded.get("kind") == "Status"
    if is_status:
        answer = dict(decoded)
    else:
        text = " ".join(body[:300].decode("utf-8", "replace").split())
        answer = {"code": status, "message": f"the API server answered {status}: {text or 'nothing'}"}
    wait = headers.get("retry-after", "")
    error = error_from_status(answer, status, float(wait) if wait.isdecimal() else None)
    if isinstance(error, Unauthorized):
        origin = f" ({where})" if where else ""
        message = f"the API server does not accept your credentials{origin}: log in again, the token may have expired"
        return Unauthorized(error.status, error.reason, message, error.details, error.retry_after)
    if isinstance(error, Forbidden):
        return Forbidden(
            error.status,
            error.reason,
            f"no permission to {verb} {resource.full_name}: {error.message}; ask for a role that allows it",
            error.details,
            error.retry_after,
        )
    if isinstance(error, NotFound) and not error.details.get("name"):
        advice = "install GreenThread's CRDs" if resource.group == GROUP else "is its API installed?"
        message = f"the cluster does not know {resource.plural} of {resource.api_version}: {advice}"
        return NoSuchKind(error.status, error.reason, message, error.details, error.retry_after)
    return error
