"""Workers that are killed come back over sockets, and no bit and no step is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from codedgrad.job import environment

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 150.0
SAMPLES, STEPS = 8, 10  # of back.py


def run(workers: int, *words: str, restarts: int = 1) -> tuple[int, str]:
    """Returns status and output of a job."""
    own = [sys.executable, "-m", "codedgrad", "run", "--restarts", str(restarts)]
    limit = ["timeout", "--kill-after=5", str(LIMIT_S)]
    job = subprocess.run(
        [*limit, *own, "-n", str(workers), "tests/failures/back.py", *words],
        cwd=ROOT,
        env={**environment.without_launcher(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return job.returncode, job.stdout


def ends_of(folder: Path, said: str, ranks: set[int]) -> dict[int, dict[str, Any]]:
    """Returns what the workers have written, if all have the calm run's bits."""
    found = {int(p.suffix[1:]): json.loads(p.read_text()) for p in folder.glob("end.*")}
    assert set(found) == ranks, said
    for end in found.values():
        bits = {one["bits"] for one in end["seen"]}
        assert bits == {found[min(ranks)]["seen"][1]["bits"]}, (found, said)
    return found


def test_two_come_back_whatever_goes_wrong_in_between(tmp_path: Path) -> None:
    """One has another model, one dies as it loads the state, one as it gives it."""
    kills = "kill:worker=1,step=20,after=0.001"
    status, said = run(3, str(tmp_path), kills, "in between", restarts=3)
    assert status == 0, said
    found = ends_of(tmp_path, said, {0, 1, 2})
    for rank, end in found.items():
        first, calm = end["seen"]
        assert end["again"] == (rank < 2)
        assert (first["begun"] > 20) == (rank < 2)
        assert first["lost"] == calm["lost"] == []
        assert first["loss"] == calm["loss"]
        assert first["evaluated"] == SAMPLES * 3 * STEPS
        assert end["sum"] == 6
    for words in (
        "worker 1 is started again",
        "worker 1 cannot come back: it has parameter",
        "worker 1 cannot come back: worker 1 is not to be heard any more",
        "worker 1 ended with status 1, before it had come back",
        "worker 1 ended by signal 9 (SIGKILL), before it had come back",
        "worker 1 cannot come back: worker 0, which gave it the state, was lost",
        "worker 1 was not let in: worker 0 is not to be heard any more",
        "it asks again",
        "worker 0 is back, from step",
        "worker 1 is back, from step",
        "3 of 3 work",
    ):
        assert words in said, (words, said)
