"""Under `on_nonfinite="refuse"` no NaN reaches `p.grad`, also where nothing can help.

The jobs are processes of their own, since such an error ends a job.
"""

from __future__ import annotations

import functools

import forks
import pytest

JOB = """
import torch, codedgrad
from torch import nn

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
CASES = [
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
]


@functools.cache
def ended() -> list[forks.Ended]:
    return forks.run_all([JOB.format(settings=s, factor=f) for s, f, *_ in CASES])


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(c[:2]) for c in CASES])
def test_one_worker(case: int) -> None:
    (_, _, out, error), done = CASES[case], ended()[case]
    assert done.stdout.strip() == out, done.stderr
    assert error in done.stderr
