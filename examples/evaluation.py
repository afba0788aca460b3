"""Validation between the epochs: exact counts, each sample once, and early stopping.

    codedgrad run -n 4 examples/evaluation.py

`codedgrad.evaluate` divides the validation data among the workers, and those that are
done help the late. All get the same bits, so that all decide alike.
"""

from __future__ import annotations

import argparse
import copy

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import codedgrad


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return the data for training and for validation."""
    features, labels = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    x = (x - x.mean(0)) / x.std(0)
    held = torch.arange(len(x)) % 4 == 0
    return TensorDataset(x[~held], y[~held]), TensorDataset(x[held], y[held])


def validate(model: nn.Module, held: TensorDataset) -> dict[str, float]:
    """Return the share that is right, and the loss, of all validation samples."""

    def sums(x: Tensor, y: Tensor) -> dict[str, Tensor | int]:
        out = model(x)
        return {
            "right": (out.argmax(1) == y).sum(),
            "loss": nn.functional.cross_entropy(out, y, reduction="sum"),
            "samples": len(y),
        }

    total = codedgrad.evaluate(model, held, sums, batch_size=16)
    return {name: total[name] / total["samples"] for name in ("right", "loss")}


def main() -> float:
    """Train until the validation loss gets no better; return the best accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--patience", type=int, default=3, help="in epochs")
    args = parser.parse_args()

    codedgrad.init()
    torch.manual_seed(1)
    train, held = data()
    model = nn.Sequential(
        nn.Linear(30, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
    )
    codedgrad.broadcast_parameters(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    coded = codedgrad.CodedGradient(model)
    sampler = codedgrad.ShardSampler(train, batch_size=48)

    def loss_fn(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    best, since = {"loss": float("inf"), "right": 0.0}, 0
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for shards in coded.steps(sampler):
            coded.backward(loss_fn, shards)
            optimizer.step()
            optimizer.zero_grad()
        now = validate(model, held)
        if codedgrad.rank() == 0:
            print(f"epoch {epoch}:", *(f"{k} {v:.3f}" for k, v in now.items()))
        if now["loss"] < best["loss"]:
            best, since, weights = now, 0, copy.deepcopy(model.state_dict())
        elif (since := since + 1) == args.patience:
            break  # on all workers, since all have the same figures
    model.load_state_dict(weights)
    coded.close()
    return best["right"]


if __name__ == "__main__":
    main()
