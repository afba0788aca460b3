"""Under `on_nonfinite="refuse"` no NaN reaches `p.grad`, also where nothing can help.

The jobs are processes of their own, since such an error ends a job.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from codedgrad.job import environment

JOB = """
import torch, codedgrad
from torch import nn

torch.set_num_threads(1)
codedgrad.init()
model = nn.Linear(4, 1)
coded = codedgrad.CodedGradient(model, {settings})
data = (torch.randn(16, 4), torch.randn(16, 1))
def loss(x, y):
    return (model(x) - y).square().mean() * {factor}
for shards in coded.steps(codedgrad.ShardSampler(data, 16)):
    coded.backward(loss, shards)
print(bool(model.weight.grad.isfinite().all()))
"""
REFUSE = 'policy=codedgrad.approximate(0.1), on_nonfinite="refuse"'


@pytest.mark.parametrize(
    ("settings", "factor", "out", "error"),
    [
        (REFUSE, "1.0", "True", ""),
        (REFUSE, "float('nan')", "", "loss (nan) of step 0, shard 0"),
        (REFUSE, "(model.weight.sum() - model.weight.sum()).sqrt()", "", "gradient of"),
        ("policy=codedgrad.approximate(0.1)", "float('inf')", "", "loss (inf) of"),
        ('on_nonfinite="continue"', "float('nan')", "False", ""),
        (
            'policy=codedgrad.approximate(0.0), on_nonfinite="refuse"',
            "1.0",
            "",
            "bounds above 0",
        ),
    ],
)
def test_one_worker(settings: str, factor: str, out: str, error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOB.format(settings=settings, factor=factor)],
        env=environment.without_launcher(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.strip() == out, done.stderr
    assert error in done.stderr
