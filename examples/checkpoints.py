"""Checkpoints in the middle of an epoch, and going on from them.

    codedgrad run -n 4 examples/checkpoints.py --stop-after 7    # is "killed" in step 7
    codedgrad run -n 2 examples/checkpoints.py                   # goes on with two

The second run makes the steps that the first one would have made. With the same number
of workers and `same_bits=True` it ends in the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import codedgrad


def data() -> TensorDataset:
    """Return some points and a function of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator)
    return TensorDataset(x, x.square().sum(1, keepdim=True))


def main() -> str:
    """Train or go on; return a digest of the parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--every", type=int, default=5, help="steps between them")
    parser.add_argument("--stop-after", type=int, default=0, help="steps; 0: do not")
    args = parser.parse_args()

    codedgrad.init()
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1)
    )
    codedgrad.broadcast_parameters(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    coded = codedgrad.CodedGradient(model, same_bits=True)
    sampler = codedgrad.ShardSampler(data(), batch_size=48)
    parts = {
        "model": model,
        "optimizer": optimizer,
        "coded": coded,  # the number of the step, from which dropout's masks follow
        "sampler": sampler,  # the place in the epoch
    }
    if args.file.exists():  # on every worker; all need to see the file
        saved = torch.load(args.file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    else:
        codedgrad.barrier()  # nobody saves before all have looked

    def loss_fn(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(x), y)

    def train() -> None:
        for epoch in range(sampler.epoch, args.epochs):
            sampler.set_epoch(epoch)
            for shards in coded.steps(sampler):
                coded.backward(loss_fn, shards)
                optimizer.step()
                optimizer.zero_grad()
                if coded.step % args.every == 0 or coded.step == args.stop_after:
                    state = {name: part.state_dict() for name, part in parts.items()}
                    codedgrad.save(args.file, state)  # worker 0 writes
                if coded.step == args.stop_after:
                    return

    train()
    coded.close()
    bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    digest = hashlib.sha256(bits).hexdigest()[:12]
    if codedgrad.rank() == 0:
        print(f"{coded.step} steps, parameters {digest}")
    return digest


if __name__ == "__main__":
    main()
