"""A few seeds of the simulation in every test run; `make simulate` runs many."""

import subprocess
import sys


def test_seeds_hold_all_properties():
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 seeds, 0 failed" in done.stdout
