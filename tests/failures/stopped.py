"""Trainings whose workers are stopped by signals from outside, one after the other.

    stopped.py FOLDER CASE...

Each case is trained twice, from the same start: in calm, and once more with signals.
For the second time every worker writes its process number to FOLDER/CASE.pid.<worker>
when it has made some steps, and from then on a byte to FOLDER/CASE.steps.<worker> at
the begin of each step. At the end of the case it writes the digests of both trainings
to FOLDER/CASE.end.<worker>.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad import codes

PASS_S = 0.025  # of a shard
FIRST = 4  # steps before the signals
SAMPLES = 8  # of a shard


class Case(NamedTuple):
    """What is trained, and for how many steps."""

    code: str = "spread"
    width: int = 32
    steps: int = 40
    window: int = 128
    settings: dict[str, Any] = {}  # noqa: RUF012


CASES = {
    "one": Case(),
    "two": Case(),
    # Help in whole shards, and nobody is left who is listed for that of worker 1.
    "whole": Case(settings={"pieces": False}),
    "tiny": Case(width=1),  # worker 0 owns all
    "buckets": Case(width=3000, settings={"bucket_mb": 0.02}),
    "scheduled": Case(code="scheduled", settings={"overlap": False}),
    "window": Case(window=4, steps=16),
    "uncoded": Case(code="uncoded", steps=12),
    "other_bits": Case(steps=12, settings={"same_bits": False}),
}


def code_of(name: str) -> codes.Code:
    n = codedgrad.size()
    if name == "scheduled":
        return codes.scheduled(n, copies=3, order="cyclic")
    return codes.uncoded(n, micro=4) if name == "uncoded" else codes.spread(n)


def descend(model: nn.Module) -> None:
    """A step by hand: torch's first optimizer imports for longer than this takes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    model.zero_grad()


def train(case: Case, pass_s: float, ready: Path | None) -> str:
    """Returns a digest of the parameters."""
    n = codedgrad.size()
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(SAMPLES * n, 4), torch.randint(0, 3, (8 * n,)))
    model = nn.Sequential(nn.Linear(4, case.width), nn.Tanh(), nn.Linear(case.width, 3))
    settings = {"same_bits": True, "window": case.window, **case.settings}
    coded = codedgrad.CodedGradient(model, code_of(case.code), **settings)
    sampler = codedgrad.ShardSampler(data, SAMPLES * n)

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        time.sleep(pass_s * len(x) / SAMPLES)
        return nn.functional.cross_entropy(model(x), y)

    while coded.step < case.steps:
        sampler.set_epoch(coded.step)
        for shards in coded.steps(sampler):  # one step an epoch
            if coded.step == FIRST and ready is not None:
                ready.write_text(str(os.getpid()))
            if coded.step >= FIRST and ready is not None:
                with Path(str(ready).replace(".pid.", ".steps.")).open("ab") as file:
                    file.write(b".")
            coded.backward(loss_fn, shards)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # in place
            descend(model)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    coded.close()
    return digest.hexdigest()


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    codedgrad.init()
    rank = codedgrad.rank()
    for name in names:
        calm = train(CASES[name], 0.001, None)
        bits = train(CASES[name], PASS_S, folder / f"{name}.pid.{rank}")
        text = json.dumps({"calm": calm, "bits": bits})
        part = folder / f"{name}.part.{rank}"
        part.write_text(text)
        part.rename(folder / f"{name}.end.{rank}")


main(Path(sys.argv[1]), sys.argv[2:])
