"""Image classification: a dataset with augmentation, loader processes, metrics.

    codedgrad run -n 4 examples/images.py --epochs 10

The images are the 1,797 handwritten digits that come with scikit-learn.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import codedgrad


class Digits(Dataset[Any]):
    """Images of 8 x 8, moved by up to one pixel for training."""

    def __init__(self, *, train: bool) -> None:
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
        y = torch.tensor(labels)
        some = torch.arange(len(x)) % 5 != 0
        self.images, self.labels = x[some == train], y[some == train]
        self._train = train

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self._train:  # the same on whichever worker it is read: see docs/data.md
            down, right = torch.randint(-1, 2, (2,)).tolist()
            image = image.roll((down, right), (1, 2))
        return image, self.labels[index]


def network() -> nn.Module:
    """Return a small CNN."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def main() -> float:
    """Train; return the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--loaders", type=int, default=1, help="of each worker")
    args = parser.parse_args()

    codedgrad.init()
    torch.manual_seed(1)
    model = network()
    codedgrad.broadcast_parameters(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    coded = codedgrad.CodedGradient(model)
    sampler = codedgrad.ShardSampler(
        Digits(train=True), batch_size=64, num_workers=args.loaders
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 5e-3, total_steps=args.epochs * len(sampler)
    )

    def loss_fn(x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = model(x)
        accuracy = (out.argmax(1) == y).float().mean()
        return nn.functional.cross_entropy(out, y), {"accuracy": accuracy}

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            loss = coded.backward(loss_fn, shards)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if codedgrad.rank() == 0:
            accuracy = coded.metrics["accuracy"]
            print(f"epoch {epoch}: loss {float(loss):.3f}, accuracy {accuracy:.3f}")
    coded.close()

    # Each worker looks at a part of the test images; the counts are added up.
    model.eval()
    test = Digits(train=False)
    own = slice(codedgrad.rank(), None, codedgrad.size())
    with torch.no_grad():
        right = (model(test.images[own]).argmax(1) == test.labels[own]).sum()
    accuracy = float(codedgrad.allreduce(right, op="sum")) / len(test)
    if codedgrad.rank() == 0:
        print(f"accuracy on {len(test)} test images: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
