"""Many small seeds of the simulation and a few large ones in every test run; `make simulate` runs more."""

import os
import subprocess
import sys

import pytest


def simulation(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


@pytest.mark.timeout(1800)
def test_seeds_hold_all_properties():
    done = simulation("--seeds", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 seeds, 0 failed" in done.stdout


def test_a_seed_replays_exactly():
    first, second = simulation("--seed", "19", "--history"), simulation("--seed", "19", "--history")
    assert first.stdout == second.stdout
    assert "-> waking" in first.stdout


@pytest.mark.parametrize("name", ["releases-before-the-engine-sleeps", "ignores-popular", "forgets-its-intent"])
def test_what_is_broken_on_purpose_is_found(name):
    done = simulation("--break", name, "--seeds", "60")  # a schedule in ten or so shows it
    assert done.returncode == 0, f"not found: {done.stdout}{done.stderr}"
