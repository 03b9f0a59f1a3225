"""`version`: which GreenThread this is."""

from __future__ import annotations

from kubectl_greenthread.options import Session
from kubectl_greenthread.output import out


def version(session: Session) -> None:
    """Print the version of this program."""
    out(f"greenthread {installed()}")


def installed() -> str:
    """The version of the installed package, or `unknown`."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of("greenthread")
    except PackageNotFoundError:
        return "unknown"
