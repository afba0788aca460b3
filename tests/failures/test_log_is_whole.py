"""What a run has recorded is on disk, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codedgrad.lab import traces

ROOT = Path(__file__).parent.parent.parent
STEPS = 7
JOB = f"""
import sys, torch, codedgrad
codedgrad.init()
model = torch.nn.Linear(3, 1)
codedgrad.broadcast_parameters(model.state_dict())
coded = codedgrad.CodedGradient(model, log=sys.argv[1])
data = torch.utils.data.TensorDataset(torch.ones({STEPS} * 32, 3))
for shards in coded.steps(codedgrad.ShardSampler(data, 32)):
    coded.backward(lambda x: model(x).mean(), shards)
"""
ENDS = {
    "shutdown": "codedgrad.shutdown()",
    "nothing": "",
    "exception": "if codedgrad.rank() == 1: raise OSError('disk full')",
}


@pytest.mark.parametrize("end", ENDS)
def test_log_is_whole(end: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["timeout", "--kill-after=5", "60", "bash", "launch/mpirun.sh", "-n", "2",
         sys.executable, "-c", JOB + ENDS[end], str(tmp_path / "log")],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (end != "exception"), done.stderr
    assert traces.read(tmp_path / "log").compute.shape == (STEPS, 2)
