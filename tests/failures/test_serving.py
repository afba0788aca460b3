"""A helper that is stopped, and then killed, costs the owner of a query nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 60.0
DEADLINE_S = 0.05
LOST = 80  # the status of a job that has outlived a worker


def until(file: Path, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT_S
    while not file.exists():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end, "the job hangs"
        time.sleep(0.005)


def test_no_query_waits_for_a_helper(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "codedgrad", "run", "--transport", "socket"]
    script = ["-n", "2", "tests/failures/serving.py", str(tmp_path)]
    job = subprocess.Popen(
        ["timeout", "--kill-after=5", str(LIMIT_S), *launch, *script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(tmp_path / "pid", job)
        helper = int((tmp_path / "pid").read_text())
        os.kill(helper, signal.SIGSTOP)
        (tmp_path / "stopped").touch()
        until(tmp_path / "done", job)
        os.kill(helper, signal.SIGKILL)
        (tmp_path / "killed").touch()
        output = job.communicate(timeout=LIMIT_S)[0]
    finally:
        if job.poll() is None:
            job.kill()
            job.communicate()
    assert job.returncode == LOST, output
    found, (exact, late) = json.loads((tmp_path / "found.json").read_text())
    for each in found:
        assert each["alike"]
        # The model takes 6 ms, and 6 s in the second predictor. These are generous,
        # for a busy machine; who waits for the helper waits for seconds.
        assert sorted(each["exact_s"])[6] < 0.1
        assert max(each["exact_s"]) < 1.0
        assert min(each["late_s"]) >= DEADLINE_S
        assert max(each["late_s"]) < 1.0
    assert exact["exact"] == 24
    # Nobody sends without end to a worker that does not reply.
    assert 0 < exact["asked"] <= 4
    assert 0 < late["asked"] <= 4
    assert "worker 1 is gone" in output
