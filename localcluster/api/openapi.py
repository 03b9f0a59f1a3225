"""The schemas of the built-in kinds, and the OpenAPI documents that clients read."""

from .schema import Schema


def schema_of(group: str, version: str, kind: str) -> Schema | None:
    return None


def document(api, parts, request):
    from .messages import json_response, text_response

    return text_response(404, "404 page not found\n")
