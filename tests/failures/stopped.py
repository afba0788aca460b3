"""A training whose workers are stopped by signals from outside.

    stopped.py FOLDER STEPS CASE

Every worker writes its process number to FOLDER/pid.<worker>, the begins of its steps
to FOLDER/times.<worker>, and at its end the digest of its parameters to
FOLDER/bits.<worker>.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad import codes

PASS_S = 0.05
CASES = {  # code, width of the model, further settings
    "spread": (lambda n: codes.spread(n), 32, {}),
    "tiny": (lambda n: codes.spread(n), 1, {}),
    "buckets": (lambda n: codes.spread(n), 600, {"bucket_mb": 0.05}),
    "no_overlap": (lambda n: codes.spread(n), 32, {"overlap": False}),
    "scheduled": (
        lambda n: codes.scheduled(n, copies=min(3, n), order="cyclic"),
        32,
        {},
    ),
    "uncoded": (lambda n: codes.uncoded(n, micro=4), 32, {}),
}


def main(folder: Path, steps: int, case: str) -> None:
    torch.set_num_threads(1)
    codedgrad.init()
    make, width, settings = CASES[case]
    n, rank = codedgrad.size(), codedgrad.rank()
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(16 * n, 4), torch.randint(0, 3, (16 * n,)))
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    code = make(n)
    coded = codedgrad.CodedGradient(model, code, same_bits=True, window=128, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sampler = codedgrad.ShardSampler(data, 16 * n)

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        time.sleep(PASS_S * len(x) / 16)
        return nn.functional.cross_entropy(model(x), y)

    (folder / f"pid.{rank}").write_text(str(os.getpid()))
    begins = []
    epoch = 0
    while coded.step < steps:
        sampler.set_epoch(epoch)
        epoch += 1
        for shards in coded.steps(sampler):
            begins.append(time.monotonic())
            coded.backward(loss_fn, shards)
            optimizer.step()
            optimizer.zero_grad()
            if coded.step == steps:
                break
    begins.append(time.monotonic())
    (folder / f"times.{rank}").write_text("\n".join(map(repr, begins)))
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    (folder / f"bits.{rank}").write_text(digest.hexdigest())
    coded.close()


main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
