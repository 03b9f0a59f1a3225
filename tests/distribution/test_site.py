"""The documentation's site builds, and MkDocs has nothing to complain of: links, anchors, pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import release
from tests.distribution.conftest import ran

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_it_builds_strictly(tmp_path: Path) -> None:
    lock = str(release.ROOT / "requirements.lock")
    python = release.virtual_environment(tmp_path / "venv", "--constraint", lock, "mkdocs-material")
    done = ran(python, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site", cwd=release.ROOT)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    for page in ("index.html", "recipes.html", "operate.html", "reference/objects.html"):
        assert (tmp_path / "site" / page).stat().st_size > 5000
    text = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'src="https://' not in text, "a page loads something from elsewhere"
    assert 'rel="stylesheet" href="https://' not in text
