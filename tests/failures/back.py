"""A training that loses workers, which come back: back.py FOLDER KILLS ["in between"].

KILLS is a plan of faults ("" for none). All train with it, wait in their steps until
everybody is back, and train in calm once more, from the same beginning. Each worker
writes what it has seen to FOLDER/end.<worker>. With "in between" the first process in
the place of worker 1 has another model, the second one dies as it comes back, and so
does worker 0 as it gives its state to the third one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad.step import carried

EPOCHS, STEPS = 20, 10  # of an epoch
SAMPLES = 8  # of a shard in a step
OPTIONS = set(sys.argv[3:])
FOLDER = Path(os.environ["CODEDGRAD_FOLDER"])
_OWN = FOLDER / f"process.{os.environ['CODEDGRAD_RANK']}"
AGAIN = _OWN.exists() and _OWN.read_text() != "0"  # a process in the place of another
OTHER = "in between" in OPTIONS and (_OWN.name[-1], _OWN.read_text()) == ("1", "1")


def model_of(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 3)
    )


def data_of(n: int) -> TensorDataset:
    torch.manual_seed(1)
    count = SAMPLES * n * STEPS
    return TensorDataset(torch.randn(count, 4), torch.randint(0, 3, (count,)))


def wait_until_it_asks(rank: int) -> None:
    """Wait until a new process in the place of a worker asks to be let in."""
    limit = time.monotonic() + 60.0
    while time.monotonic() < limit:
        process = (FOLDER / f"process.{rank}").read_text()
        asks = {path.suffix for path in FOLDER.glob(f"asks.{rank}.{process}.*")}
        if asks - {path.suffix for path in FOLDER.glob(f"answer.{rank}.{process}.*")}:
            return
        time.sleep(0.02)


def misbehave() -> None:
    """Die in the middle of a process's way back into the job, if that is asked for."""
    if "in between" not in OPTIONS:
        return
    process, mine = _OWN.read_text(), codedgrad.rank()

    def dies(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if (mine, process) == (1, "2"):
        carried.load = dies  # type: ignore[assignment]
    if (mine, process) == (0, "0"):
        encode, packed = carried.encode, []

        def second_time(state: dict[str, Any]) -> bytes:
            packed.append(state)
            return encode(state) if len(packed) == 1 else dies()

        carried.encode = second_time


class Counted:
    """Something of the user's own that is carried over."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def train(faults: str) -> dict[str, Any]:
    n = codedgrad.size()
    model = model_of(33 if OTHER else 32)
    codedgrad.broadcast_parameters(model.state_dict())
    coded = codedgrad.CodedGradient(
        model, same_bits=True, faults=faults or None, bucket_mb=0.0002, window=4
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9], gamma=0.5)
    counted = Counted()
    coded.track(optimizer=optimizer, schedule=schedule, counted=counted)
    sampler = codedgrad.ShardSampler(data_of(n), SAMPLES * n)
    begun = -1

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    for epoch in coded.epochs(sampler, EPOCHS):
        model.train()
        begun = coded.step if begun < 0 else begun
        for shards in coded.steps(sampler):
            loss = coded.backward(loss_fn, shards)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            counted.steps += 1
            for lost in codedgrad.lost_workers() if faults else ():
                wait_until_it_asks(lost)
        schedule.step()
        if epoch in (0, EPOCHS - 2):  # before somebody is lost, and once all are back
            found = codedgrad.evaluate(
                model, data_of(n), lambda _, y: {"n": len(y)}, batch_size=8
            )
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    digest.update(json.dumps([counted.steps, schedule.get_last_lr()]).encode())
    lost = codedgrad.lost_workers()
    coded.close()
    seen = {"bits": digest.hexdigest(), "loss": float(loss), "begun": begun}
    return {**seen, "lost": lost, "evaluated": found["n"]}


def main(folder: Path, faults: str) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    codedgrad.init(timeout_s=60)
    misbehave()
    seen = [train(faults), train("")]
    total = codedgrad.allreduce(1 + codedgrad.rank(), op="sum")
    text = json.dumps({"seen": seen, "sum": total, "again": AGAIN})
    (folder / f"end.{codedgrad.rank()}").write_text(text)


main(Path(sys.argv[1]), sys.argv[2])
