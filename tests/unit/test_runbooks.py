"""Every alert has its page, and every page its alert."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_every_alert_links_to_its_section_of_the_runbooks() -> None:
    rules = yaml.safe_load((ROOT / "manifests/charts/greenthread/files/rules.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    sections = re.findall(r"^## (.*)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert [alert["alert"] for alert in alerts] == sections
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
