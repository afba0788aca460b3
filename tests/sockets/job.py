"""A training that runs under any launcher: job.py FOLDER [KIND].

Worker 1 is slow. Every worker writes a digest of its parameters to FOLDER/bits.<rank>.
With "guarded", worker 0 first writes to FOLDER/door where it listens, and all train for
long enough that others can call there meanwhile. With "dies", the last worker does;
with "other bits" the others cannot go on without it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import codedgrad

PASS_S = 0.01


def descend(model: nn.Module) -> None:
    """A step by hand: torch's first optimizer imports for longer than this takes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    model.zero_grad()


def main(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    codedgrad.init(timeout_s=30)
    rank, n = codedgrad.rank(), codedgrad.size()
    if kind == "guarded":
        from codedgrad.job.sockets import world

        assert world._world is not None
        card = world._world.cards[0]
        if rank == 0:
            (folder / "door").write_text(f"{card.host} {card.port}")
    torch.manual_seed(rank)  # broadcast takes worker 0's values
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    codedgrad.broadcast_parameters(model.state_dict(), root_rank=0)
    torch.manual_seed(7)
    data = TensorDataset(torch.randn(8 * n, 4), torch.randint(0, 3, (8 * n,)))
    coded = codedgrad.CodedGradient(model, same_bits="other bits" not in kind)
    sampler = codedgrad.ShardSampler(data, 8 * n)

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        time.sleep(PASS_S * (8 if rank == 1 else 1) * len(x) / 8)
        return nn.functional.cross_entropy(model(x), y)

    for epoch in range(60 if kind == "guarded" else 30):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            if kind.startswith("dies") and coded.step == 10 and rank == n - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            coded.backward(loss_fn, shards)
            descend(model)
            if coded.step == 30:
                digest = hashlib.sha256()
                for parameter in model.parameters():
                    digest.update(parameter.detach().numpy().tobytes())
                loaded = "mpi4py" in sys.modules
                text = f"{digest.hexdigest()} {'mpi' if loaded else 'no mpi'}"
                (folder / f"bits.{rank}").write_text(text)
    coded.close()


main(Path(sys.argv[1]), "".join(sys.argv[2:]))
