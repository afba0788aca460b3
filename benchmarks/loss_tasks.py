"""The models and data of bench_time_to_loss."""

from __future__ import annotations

import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WORKERS = 8


@dataclass(frozen=True)
class Training:
    """How a task is trained.

    Attributes:
        batch: samples of a step, over all workers.
        lr: learning rate.
        momentum: momentum of SGD.
    """

    batch: int
    lr: float
    momentum: float


@dataclass(frozen=True)
class Task:
    """A model as a function of one flat vector, its data, and how it is trained.

    Attributes:
        shapes: shapes of the model's tensors, whose elements are the flat vector.
        loss: the mean loss of (flat, x, y).
        right: the accuracy of (flat, x, y), or None if there is none.
        train, test: (x, y) of the samples.
        source: class or file of every training sample.
        training: batch size and optimizer.
    """

    shapes: tuple[tuple[int, ...], ...]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    right: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    source: np.ndarray
    training: Training

    def begin(self, seed: int) -> Tensor:
        """Draw the first weights ~ N(0, 1 / fan in); biases are 0."""
        torch.manual_seed(seed)
        tensors = [
            torch.zeros(s)
            if len(s) == 1
            else torch.randn(s) / math.sqrt(math.prod(s[1:]))
            for s in self.shapes
        ]
        return torch.cat([t.flatten() for t in tensors])


def split(flat: Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """Return the tensors of the flat vector."""
    parts = flat.split([math.prod(s) for s in shapes])
    return [p.view(s) for p, s in zip(parts, shapes, strict=True)]


def digits() -> tuple[Tensor, Tensor, np.ndarray]:
    """Return x, y and the classes of 1,797 images of 8 x 8, shuffled once."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.tensor(data.data[order] / 16.0).float()
    return x, torch.tensor(data.target[order]), data.target[order]


def classify(
    shapes: Any, logits: Callable[[list[Tensor], Tensor], Tensor], training: Training
) -> Task:
    """Make a task on digits, with 1,400 samples to train on."""
    x, y, source = digits()
    keep = 1400

    def loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(split(flat, shapes), x), y)

    def right(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (logits(split(flat, shapes), x).argmax(1) == y).float().mean()

    return Task(
        shapes=shapes,
        loss=loss,
        right=right,
        train=(x[:keep], y[:keep]),
        test=(x[keep:], y[keep:]),
        source=source[:keep],
        training=training,
    )


def cnn() -> Task:
    """Make a CNN of two convolutions and a linear layer, with 3,818 parameters."""

    def logits(p: list[Tensor], x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x.view(-1, 1, 8, 8), p[0], p[1], padding=1))
        x = F.max_pool2d(F.relu(F.conv2d(x, p[2], p[3], padding=1)), 2)
        return F.linear(x.flatten(1), p[4], p[5])

    shapes = ((8, 1, 3, 3), (8,), (16, 8, 3, 3), (16,), (10, 256), (10,))
    return classify(shapes, logits, Training(batch=128, lr=0.1, momentum=0.0))


def convex() -> Task:
    """Make logistic regression by full-batch descent, with 650 parameters."""

    def logits(p: list[Tensor], x: Tensor) -> Tensor:
        return F.linear(x, p[0], p[1])

    training = Training(batch=1400, lr=0.5, momentum=0.0)
    return classify(((10, 64), (10,)), logits, training)


def text() -> Task:
    """Make a model that predicts the next byte of Python sources from 8 before it.

    It has an embedding and two layers.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files, length = sorted(folder.glob("*.py"))[:16], 8
    xs, ys, source = [], [], []
    for i, file in enumerate(files):
        raw = np.frombuffer(file.read_bytes()[:4000], np.uint8).astype(np.int64)
        data = torch.from_numpy(np.minimum(raw, 127).copy())
        windows = data.unfold(0, length + 1, 5)[:400]
        xs.append(windows[:, :-1])
        ys.append(windows[:, -1])
        source += [i] * len(windows)
    x, y, tags = torch.cat(xs), torch.cat(ys), np.asarray(source)
    order = np.random.default_rng(0).permutation(len(x))
    x, y, tags = x[order], y[order], tags[order]
    keep = len(x) * 4 // 5 // WORKERS * WORKERS
    shapes = ((128, 8), (32, 8 * length), (32,), (128, 32), (128,))

    def loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        p = split(flat, shapes)
        h = p[0][x].flatten(-2)
        return F.cross_entropy(F.linear(F.relu(F.linear(h, p[1], p[2])), p[3], p[4]), y)

    return Task(
        shapes=shapes,
        loss=loss,
        right=None,
        train=(x[:keep], y[:keep]),
        test=(x[keep:], y[keep:]),
        source=tags[:keep],
        training=Training(batch=256, lr=0.1, momentum=0.9),
    )


TASKS = {"cnn": cnn, "convex": convex, "text": text}
