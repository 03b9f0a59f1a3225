"""One spelling for each path, so that routes can be compared exactly and no spelling slips past them."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from proxy.errors import HttpError

_TARGET = re.compile(rb"[!-~]+")  # visible ASCII: no space, no control byte, nothing above 0x7e
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")


def valid_authority(value: bytes) -> bool:
    """True for the syntax of a Host field: uri-host [":" port] (RFC 9110 §7.2), without user information."""
    return _AUTHORITY.fullmatch(value) is not None


def parse_target(target: bytes) -> tuple[str, str, bytes | None]:
    """Split a request target (RFC 9112 §3.2) into canonical path, query (without "?") and an absolute form's authority.

    Raises HttpError 400 for anything that is no path.
    """
    authority: bytes | None = None
    if _TARGET.fullmatch(target) is None or b"#" in target:
        raise HttpError(400, "The request target must be visible ASCII without '#': percent-encode other characters.")
    if target[:1] != b"/":
        if target == b"*":
            return "*", "", None
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or not absolute[1] or not valid_authority(absolute[1]):
            raise HttpError(400, "The request target must be a path that starts with '/'.")
        authority, target = absolute[1], absolute[2]
        if target[:1] != b"/":
            target = b"/" + target
    raw, _, query = target.partition(b"?")
    if b"%" not in raw and b"//" not in raw and b"/." not in raw and b"\\" not in raw:
        return raw.decode("ascii"), query.decode("ascii"), authority
    return canonical_path(raw), query.decode("ascii"), authority


def canonical_path(raw: bytes) -> str:
    """Percent-decode once, then resolve dot segments and merge repeated slashes.

    What is doubly encoded stays encoded once and so matches no route. Raises HttpError 400 for a wrong escape, control
    bytes, backslashes and bytes that are not UTF-8.
    """
    if _BAD_PERCENT.search(raw):
        raise HttpError(400, "The request path has a '%' that is not followed by two hexadecimal digits.")
    try:
        decoded = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise HttpError(400, "The request path is not UTF-8 after percent-decoding.") from None
    if "\\" in decoded or any(ord(c) < 32 or ord(c) == 127 for c in decoded):
        raise HttpError(400, "The request path has control characters or backslashes after percent-decoding.")
    segments: list[str] = []
    parts = decoded.split("/")
    for part in parts:
        if part == "..":
            if segments:
                segments.pop()
        elif part not in ("", "."):
            segments.append(part)
    path = "/" + "/".join(segments)
    if len(path) > 1 and parts[-1] in ("", ".", ".."):
        path += "/"
    return path
