"""A real job over an MPI that offers the least bits of tag, and those of UCX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from codedgrad.errors import ConfigError
from codedgrad.job import environment

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(150)
def test_five_workers_train_with_15_and_23_bits() -> None:
    limit = ["timeout", "--kill-after=5", "120"]
    launch = ["bash", "launch/mpirun.sh", "-n", "5"]
    done = subprocess.run(
        [*limit, *launch, sys.executable, "tests/engine/short_tags.py"],
        cwd=ROOT,
        env=environment.without_launcher() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["15", "23"]


def test_the_bits_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODEDGRAD_TAG_BITS", raising=False)
    assert environment.max_tag() == (1 << 31) - 1
    monkeypatch.setenv("CODEDGRAD_TAG_BITS", "15")
    assert environment.max_tag() == (1 << 15) - 1
    for bad in ("14", "32", "many", "-20"):
        monkeypatch.setenv("CODEDGRAD_TAG_BITS", bad)
        with pytest.raises(ConfigError, match=f"15 to 31 or unset, got '{bad}'"):
            environment.max_tag()
