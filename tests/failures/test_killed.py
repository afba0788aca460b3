"""Killed workers over sockets: nobody else ends, and no bit and no step is lost.

One job loses four of its five workers, one after the other, since starting takes longer
than all the rest. How long the longest step is, on a machine that does nothing else, is
for `benchmarks/bench_killed.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from codedgrad.job import environment
from codedgrad.job.sockets.supervisor import LOST

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 150.0
N = 5
LEFT = [[0, 1, 2, 3, 4], [0, 1, 2, 3], [1, 2, 3], [2]]  # after each training


def run(*words: str, **variables: str) -> tuple[int, str]:
    """Returns status and output of a job over sockets."""
    own = [sys.executable, "-m", "codedgrad", "run", "--transport", "socket"]
    job = subprocess.run(
        ["timeout", "--kill-after=5", str(LIMIT_S), *own, *words],
        cwd=ROOT,
        env={**environment.without_launcher(), "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return job.returncode, job.stdout


def test_four_of_five_are_lost(tmp_path: Path) -> None:
    status, said = run("-n", str(N), "tests/failures/killed.py", str(tmp_path))
    assert status == LOST, said
    (end,) = tmp_path.glob("end.*")
    assert end.name == "end.2", said
    found: dict[str, Any] = json.loads(end.read_text())
    assert len(found["bits"]) == len(LEFT)
    assert len(set(found["bits"])) == 1, found["bits"]
    first = found["seen"][0]
    assert first["error"] == ""
    for left, seen in zip(LEFT, found["seen"], strict=True):
        assert (seen["right"], seen["each"]) == (first["right"], first["each"])
        assert seen["sum"] == sum(1 + rank for rank in left)
        assert seen["large"] == [float(seen["sum"])]
        assert seen["last"] in left
        lost = [rank for rank in range(N) if rank not in left]
        assert not lost or f"worker(s) {lost} are lost" in seen["error"]
    for words in (
        "worker 4 ended by signal 9 (SIGKILL); worker(s) [0, 1, 2, 3] go on",
        "worker 0 ended with status 1; worker(s) [1, 2, 3] go on",
        "(SIGSEGV); worker(s)",
        "worker(s) 4 are lost, their processes have died",
        "to begin step",
        "4 of 5 go on",
        "1 of 5 go on",
    ):
        assert words in said, (words, said)
