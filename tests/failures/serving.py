"""Worker 0 answers queries while its only helper is stopped, and when it is killed.

    serving.py FOLDER

Worker 1 writes its process number to FOLDER/pid. Worker 0 answers queries once
FOLDER/stopped is there, writes FOLDER/done, and answers more once FOLDER/killed is
there. It writes what it has seen to FOLDER/found.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import codedgrad

DEADLINE_S = 0.05


class Sleeping(nn.Module):
    """A layer that takes a while, and no core."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(2e-3)
        return self.layer(x).tanh()


class StandIn:
    threshold = 0.5

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(x), 6), torch.zeros(len(x))


def wait_for(file: Path) -> None:
    until = time.monotonic() + 30
    while not file.exists() and time.monotonic() < until:
        time.sleep(2e-3)


def answers(predictors: tuple[Any, Any], net: nn.Module, count: int) -> dict[str, Any]:
    exact, late = predictors
    first, second, alike = [], [], True
    for i in range(count):
        x = torch.full((2, 6), float(i))
        answer = exact(x)
        with torch.no_grad():
            alike = alike and torch.equal(answer.value, net(x)) and answer.exact
        first.append(answer.seconds)
        answer = late(x)
        alike = alike and not answer.exact
        second.append(answer.seconds)
    return {"alike": alike, "exact_s": first, "late_s": second}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    codedgrad.init(timeout_s=60)
    torch.manual_seed(0)
    net = nn.Sequential(*(Sleeping() for _ in range(3)))
    exact = codedgrad.CodedPredictor(net, patience=0, faults="")
    late = codedgrad.CodedPredictor(
        net,
        StandIn(),
        policy=codedgrad.deadline(DEADLINE_S),
        faults="slow:worker=0,factor=1000",
    )
    if codedgrad.rank() == 1:
        (folder / "part").write_text(str(os.getpid()))
        (folder / "part").rename(folder / "pid")
    else:
        found = []
        for begin, end in (("stopped", "done"), ("killed", "end")):
            wait_for(folder / begin)
            found.append(answers((exact, late), net, 12))
            (folder / end).touch()
        stats = [exact.stats(), late.stats()]
        (folder / "found.json").write_text(json.dumps([found, stats]))
    late.close()
    exact.close()


main(Path(sys.argv[1]))
