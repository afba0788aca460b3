"""Trainings that lose workers one after the other: killed.py FOLDER.

All train in calm, then once more for each of `PHASES`, in which some die. Those who are
left do what a script does between trainings, and go on with the next phase. The last
ones write what they have seen to FOLDER/end.<worker>.
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

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad.errors import WorkerError

PASS_S = 0.02  # of a shard
STEPS, WHEN = 16, 6
SAMPLES = 8  # of a shard
PHASES = (
    f"kill:worker=4,step={WHEN},after=0.01",  # in a pass
    f"exit:worker=0,step={WHEN}",
    f"kill:worker=1,step={WHEN}; segfault:worker=3,step={WHEN}",  # one is left
)
LARGE = 5000  # elements; they do not travel through the engine


def model_of(width: int = 300) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def data_of(n: int) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(
        torch.randn(SAMPLES * n, 4), torch.randint(0, 3, (SAMPLES * n,))
    )


def train(pass_s: float, faults: str) -> str:
    """Returns a digest of the parameters."""
    n, rank = codedgrad.size(), codedgrad.rank()
    segfault = f"segfault:worker={rank},step={WHEN}" in faults
    faults = "; ".join(f for f in faults.split("; ") if not f.startswith("segfault"))
    model = model_of()
    coded = codedgrad.CodedGradient(
        model, same_bits=True, faults=faults or None, bucket_mb=0.002
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sampler = codedgrad.ShardSampler(data_of(n), SAMPLES * n)

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        time.sleep(pass_s * len(x) / SAMPLES)
        return nn.functional.cross_entropy(model(x), y)

    while coded.step < STEPS:
        sampler.set_epoch(coded.step)
        for shards in coded.steps(sampler):
            if segfault and coded.step == WHEN:
                os.kill(os.getpid(), signal.SIGSEGV)
            coded.backward(loss_fn, shards)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # in place
            optimizer.step()
            optimizer.zero_grad()
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    coded.close()
    return digest.hexdigest()


def between() -> dict[str, Any]:
    """What a script does between two trainings, and with which results."""
    rank, n = codedgrad.rank(), codedgrad.size()
    model = model_of()

    def fn(x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {"right": (model(x).argmax(1) == y).sum(), "each": codedgrad.Each(y)}

    codedgrad.barrier()
    found = codedgrad.evaluate(model, data_of(n), fn, batch_size=4)
    large = codedgrad.allreduce(np.full(LARGE, 1.0 + rank), op="sum")
    result = {
        "right": int(found["right"]),
        "each": found["each"].tolist(),
        "sum": codedgrad.allreduce(1 + rank, op="sum"),
        "large": sorted(set(large.tolist())),
        "last": codedgrad.join(),
        "error": "",
    }
    try:
        codedgrad.allgather_object(rank)
    except WorkerError as error:
        result["error"] = str(error)
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    codedgrad.init(timeout_s=60)
    rank = codedgrad.rank()
    bits = [train(0.001, "")]
    seen = [between()]
    for faults in PHASES:
        bits.append(train(PASS_S, faults))
        seen.append(between())
    text = json.dumps({"bits": bits, "seen": seen})
    (folder / f"end.{rank}").write_text(text)


main(Path(sys.argv[1]))
