"""The dashboard starts with what it shows first; the rest is imported when it is opened."""

from __future__ import annotations

import subprocess
import sys

LATER = ("plotext", "tui.charts", "tui.chat", "tui.dialogs", "tui.logs", "tui.objects", "prometheus_api_client",
         "kubernetes", "httpx", "aiohttp", "cryptography", "localcluster", "markdown_it")  # fmt: skip


def test_what_is_not_shown_first_is_not_imported_first() -> None:
    program = f"import sys, tui.start, tui.overview; print(*(n for n in {LATER!r} if n in sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
