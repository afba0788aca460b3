"""The examples run as they are, learn something, and go on from their checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples return, from one job of two workers."""
    folder = tmp_path_factory.mktemp("examples")
    done = subprocess.run(
        ["timeout", "--kill-after=5", "110", "bash", "launch/mpirun.sh", "-n", "2",
         sys.executable, "tests/examples/job.py", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_images_are_told_apart(results: dict[str, Any]) -> None:
    assert results["images"] > 0.9


def test_the_language_model_learns(results: dict[str, Any]) -> None:
    assert results["language_model"] < 3.5  # of 5.5 at the begin


def test_the_generator_draws_something(results: dict[str, Any]) -> None:
    assert 0.1 < results["gan"] < 5.0


def test_validation(results: dict[str, Any]) -> None:
    assert results["evaluation"] > 0.9


def test_a_script_of_horovods(results: dict[str, Any]) -> None:
    assert results["horovod_script"] > 0.8


def test_a_resumed_run_ends_in_the_same_bits(results: dict[str, Any]) -> None:
    assert results["whole"] == results["resumed"]


def test_no_example_is_left_out(results: dict[str, Any]) -> None:
    assert results["left out"] == []
