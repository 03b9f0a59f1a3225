"""What an earlier life of the supervisor left is killed and forgotten, also while its guard does the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from localcluster.supervisor.leftovers import Records


def test_what_still_runs_is_killed_and_every_record_forgotten(tmp_path: Path) -> None:
    records = Records(tmp_path)
    left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    records.add(left.pid, "team/ada/vllm")
    (tmp_path / "7.json").write_text("{")  # half-written
    assert records.kill_all() == ["team/ada/vllm"]
    assert left.wait(10) == -9
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_the_guard_takes_away_meanwhile_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "22719.json").symlink_to(tmp_path / "gone")  # listed, and not there when it is read
    assert Records(tmp_path).kill_all() == []
