"""The errors that vLLM answers with, in its words and shapes."""

from __future__ import annotations

from typing import Any

from localcluster.engine.http import Response, json_response


class ApiError(Exception):
    """An error answer. `kind` is vLLM's `type`."""

    def __init__(
        self, message: str, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def response(self, anthropic: bool = False) -> Response:
        """OpenAI's shape, or Anthropic's."""
        message = str(self)
        if anthropic:
            return json_response({"type": "error", "error": {"type": self.kind, "message": message}}, self.status)
        body = {"message": message, "type": self.kind, "param": self.param, "code": self.status}
        return json_response({"error": body}, self.status)


class InvalidBody(ApiError):
    """What pydantic finds wrong with a body or a query; in OpenAI's shape on every path, as vLLM has it."""

    def __init__(self, kind: str, where: str, message: str, given: Any, context: dict[str, Any] | None = None) -> None:
        shown: dict[str, Any] = {"type": kind, "loc": where, "msg": message, "input": _summary(given)}
        if context:
            shown["ctx"] = context
        super().__init__(f"1 validation error:\n  {shown}", kind="Bad Request", param=where)

    def response(self, anthropic: bool = False) -> Response:
        return super().response()


def unknown_model(name: str, names: tuple[str, ...]) -> ApiError:
    """404 for a model that is not served here."""
    aliases = ", ".join(names)
    return ApiError(f"The model `{name}` does not exist. Valid aliases: {aliases}.", 404, "NotFoundError", "model")


def engine_dead() -> ApiError:
    """500: the engine behind the API server has died; the API server follows it."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return ApiError(message, 500, "InternalServerError")


def _summary(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "...[truncated]"
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)
