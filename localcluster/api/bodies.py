"""What comes in: options, bodies, and the way of an object from a body to something that may be stored."""

import json
from dataclasses import dataclass, replace
from typing import Any

from . import cel, metadata, protobuf
from .errors import StatusError, bad_request, cause, invalid
from .messages import Request, parse_json, parse_yaml
from .resources import ResourceType
from .schema import apply_defaults, decode, drop_nulls, prune, validate
from .storage import Object

_BLOCKING = ("FieldValueNotSupported", "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany",
             "FieldValueTypeInvalid")  # fmt: skip
"""After an error of these kinds the CEL rules are not evaluated."""
_UNCHECKED = cause(
    "FieldValueInvalid",
    "<nil>",
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation",
    None,
)


@dataclass(frozen=True, slots=True)
class Options:
    """The parameters of a write."""

    dry_run: bool = False
    validation: str = "Warn"

    @staticmethod
    def of(query: Any, body: Any = None) -> "Options":
        """From the query, or the body of a deletion. StatusError 422 for values that do not exist."""
        dry = query.get("dryRun", "")
        if isinstance(body, dict) and body.get("dryRun"):
            dry = ",".join(map(str, body["dryRun"])) if isinstance(body["dryRun"], list) else str(body["dryRun"])
        if dry not in ("", "All"):
            raise StatusError(
                422,
                "Invalid",
                f'Options.meta.k8s.io "" is invalid: dryRun: Unsupported value: {json.dumps(dry)}: '
                'supported values: "All"',
            )
        level = query.get("fieldValidation") or "Warn"
        if level not in ("Ignore", "Warn", "Strict"):
            raise StatusError(
                422,
                "Invalid",
                f'Options.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: {json.dumps(level)}: '
                'supported values: "", "Ignore", "Strict", "Warn"',
            )
        return Options(dry == "All", level)


def read_body(request: Request, rt: ResourceType) -> tuple[Object, list[str]]:
    content = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content in ("application/json", "", "text/plain"):
        value, duplicates = _parsed(request, rt)
    elif content in ("application/yaml", "application/x-yaml", "text/yaml"):
        value, duplicates = parse_yaml(request.body)
    elif content == protobuf.MEDIA:
        value, duplicates = protobuf.decode(request.body), []
    else:
        raise StatusError(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json, "
            "application/yaml",
        )
    if not isinstance(value, dict):
        raise bad_request(f"the body must be an object of kind {rt.kind}")
    check_kind(rt, value)
    return value, duplicates


def _parsed(request: Request, rt: ResourceType) -> tuple[Any, list[str]]:
    try:
        return parse_json(request.body)
    except StatusError as error:
        raise bad_request(
            f"the object provided is unrecognized (must be of type {rt.kind}): couldn't get version/kind; json "
            f"parse error: {error.message}"
        ) from None


def check_kind(rt: ResourceType, body: Object) -> None:
    api_version, kind = body.get("apiVersion", ""), body.get("kind", "")
    if rt.custom and (not kind or not api_version):
        missing = "Kind" if not kind else "apiVersion"
        text = json.dumps(body, separators=(",", ":"))[:200]
        raise bad_request(
            f"the object provided is unrecognized (must be of type {rt.kind}): Object '{missing}' is missing in "
            f"'{text}' ({text})"
        )
    if api_version and api_version != rt.api_version:
        raise bad_request(
            f"the API version in the data ({api_version}) does not match the expected API version ({rt.api_version})"
        )
    if kind and kind != rt.kind:
        if not rt.custom:
            raise bad_request(f"the kind in the data ({kind}) does not match the expected kind ({rt.kind})")
        name = (body.get("metadata") or {}).get("name", "") if isinstance(body.get("metadata"), dict) else ""
        raise invalid(rt.group, kind, str(name), [cause("FieldValueInvalid", "kind", f"must be {rt.kind}", kind)])
    body["apiVersion"], body["kind"] = rt.api_version, rt.kind


def tidy(rt: ResourceType, obj: Object, options: Options, duplicates: list[str]) -> dict[str, str]:
    """Shape, pruning, defaults. Returns the warning header; StatusError 400 in strict mode."""
    problems = [f'duplicate field "{key}"' for key in duplicates]
    version = f'{rt.kind} in version "{rt.version}"'
    if rt.schema is not None and not rt.custom:
        wrong = decode(rt.schema, obj)
        if wrong is not None:
            raise bad_request(f"{version} cannot be handled as a {rt.kind}: {wrong}")
    unknown = metadata.shape(obj, version)
    if rt.schema is not None:
        prune(rt.schema, obj, "", unknown, root=True)
    problems += [f'unknown field "{path}"' for path in unknown]
    if problems and options.validation == "Strict":
        raise bad_request(f"{version} cannot be handled as a {rt.kind}: strict decoding error: " + ", ".join(problems))
    if rt.schema is not None:
        apply_defaults(rt.schema, obj)
        if rt.custom:
            drop_nulls(rt.schema, obj)
    if problems and options.validation == "Warn":
        return {"Warning": ", ".join(f"299 - {json.dumps(problem)}" for problem in problems)}
    return {}


def check(rt: ResourceType, obj: Object, old: Object | None, sub: str = "") -> None:
    """StatusError 422 if the object is not valid; of a subresource only that part is checked by schema."""
    name = obj["metadata"].get("name", "")
    rule = rt.name_rule or metadata.dns_subdomain
    found = metadata.check(
        obj, None if old is not None else rule(name), core=not rt.custom and rt.group != "apiextensions.k8s.io"
    )
    if rt.schema is not None and rt.custom:
        part = rt.schema.properties.get(sub) if sub else None
        if not sub:
            found += validate(rt.schema, obj, "", old, root=True)
        elif part is not None and sub in obj:
            wrong = validate(part, obj[sub], "", (old or {}).get(sub))
            found += [w if w.field == "<nil>" else replace(w, field=f"{sub}.{w.field}".rstrip(".")) for w in wrong]
        if any(problem.kind in _BLOCKING for problem in found):
            found.append(_UNCHECKED)
        else:
            found += cel.validate(rt.schema, obj, old)
    found += rt.check(obj, old)
    if found:
        raise invalid(rt.group, rt.kind, name, found)
