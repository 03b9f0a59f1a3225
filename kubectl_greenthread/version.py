"""`version`: which GreenThread this is."""

from __future__ import annotations

import click


@click.command("version")
def command() -> None:
    """Print the version of this program."""
    from importlib.metadata import version

    click.echo(f"greenthread {version('greenthread')}")
