"""A script for Horovod, in which the import line alone was changed.

    codedgrad run -n 4 examples/horovod_script.py

With `import horovod.torch as hvd` it is a script of Horovod's.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import codedgrad.hvd as hvd


def main() -> float:
    """Train; return the accuracy that all workers have together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()

    hvd.init()
    torch.manual_seed(42)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16.0, dtype=torch.float32)
    train = TensorDataset(x[:1500], torch.tensor(labels[:1500]))
    test = TensorDataset(x[1500:], torch.tensor(labels[1500:]))
    sampler = DistributedSampler(train, num_replicas=hvd.size(), rank=hvd.rank())
    loader = DataLoader(train, batch_size=32, sampler=sampler)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * hvd.size(), momentum=0.9)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.none,
        op=hvd.Average,
    )

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for inputs, wanted in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), wanted).backward()
            optimizer.step()

    own_x, own_y = test[hvd.rank() :: hvd.size()]
    accuracy = (model(own_x).argmax(1) == own_y).float().mean()
    accuracy = hvd.allreduce(accuracy, name="accuracy")
    if hvd.rank() == 0:
        print(f"accuracy: {float(accuracy):.3f}")
    return float(accuracy)


if __name__ == "__main__":
    main()
