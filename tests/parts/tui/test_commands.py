"""`live` and `dashboard` as commands."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from kubectl_greenthread.main import VERBS, run
from tui.start import dashboard, live


@pytest.mark.parametrize("command", [live, dashboard])
def test_without_a_terminal_it_says_what_to_use_instead(command: object) -> None:
    result = CliRunner().invoke(command, [])  # type: ignore[arg-type]
    assert result.exit_code == 1
    assert result.output == "Error: this needs a terminal; `top` prints the same once\n"


@pytest.mark.parametrize("verb", ["live", "dashboard"])
def test_the_plugin_finds_it_and_passes_its_own_options_on(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb in VERBS
    assert run(["--context", "prod", "-n", "team", verb, "--readonly"], "kubectl greenthread") == 1
    assert "needs a terminal" in capsys.readouterr().err


def test_options_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["live", "--theme", "pink"], "greenthread") == 2
    assert "'dark', 'light'" in capsys.readouterr().err
