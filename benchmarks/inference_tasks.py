"""The models and data of bench_inference.

*digits*: scikit-learn's 1,797 images of 8 x 8, distorted at random. *series*: MNIST-1D
(Greydanus and Kobak, 2020), made by its published recipe, nothing is downloaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from loss_tasks import digits
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
PADDING, TRANSLATION, LENGTH = (36, 60), 48, 40
SCALE, CORRELATED, INDEPENDENT, SHEAR = 0.4, 0.25, 0.02, 0.75


@dataclass(frozen=True)
class Data:
    """The samples of a task; no base image is in two of these.

    Attributes:
        train: (x, y) that the model is trained on; a stand-in is distilled on x.
        held_out: inputs for doubt and threshold.
        test: (x, y) of queries.
    """

    train: tuple[Tensor, Tensor]
    held_out: Tensor
    test: tuple[Tensor, Tensor]


def distorted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shift and brighten images at random, each otherwise."""
    n = len(x)

    def draw(size: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * size

    angle, scale = draw(math.radians(10)), 1 + draw(0.1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([cos, -sin, draw(0.12), sin, cos, draw(0.12)], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, align_corners=False)
    noise = 0.03 * torch.randn(x.shape, generator=generator)
    return moved * (1 + draw(0.1))[:, None, None, None] + noise


def digits_data(seed: int, toy: bool = False) -> Data:
    """Split the images by seed: 900 to train, 400 held out, the rest queries."""
    x, y, _ = digits()
    x = x.view(-1, 1, 8, 8)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    parts = order[:900], order[900:1300], order[1300:]
    copies = (2, 2, 2) if toy else (24, 16, 8)
    x_all, y_all = [], []
    for rows, count in zip(parts, copies, strict=True):
        rows = rows.repeat(count)
        x_all.append(distorted(x[rows], generator))
        y_all.append(y[rows])
    return Data((x_all[0], y_all[0]), x_all[1], (x_all[2], y_all[2]))


def series(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make samples of MNIST-1D: padded, dilated, moved, noisy, sheared, subsampled."""
    template = torch.tensor(TEMPLATES)
    template = template - template.mean(1, keepdim=True)
    template = template / template.std(1, keepdim=True, unbiased=False)
    template = (template - template[:, :1]) / 6
    y = torch.randint(10, (count,), generator=generator)
    full = template.shape[1] + PADDING[1]

    def draw() -> Tensor:
        return torch.rand(count, 1, generator=generator)

    # Padded by p zeros, then dilated to the full length: position t of the result is
    # position t (12 + p - 1) / (full - 1) of the padded template.
    padding = (PADDING[0] + draw() * (PADDING[1] - PADDING[0] + 1)).floor()
    t = torch.arange(full) * (template.shape[1] + padding - 1) / (full - 1)
    padded = F.pad(template[y] + 1e-8, (0, full))
    low = t.floor().long()
    x = torch.lerp(padded.gather(1, low), padded.gather(1, low + 1), t - low)
    x = x * (1 + SCALE * (draw() - 0.5))
    shift = (draw() * TRANSLATION).floor().long()
    x = x.gather(1, (torch.arange(full) - shift) % full)
    x = torch.where(x != 0, x, smooth_noise(count, full, generator))
    x = x + INDEPENDENT * torch.randn(x.shape, generator=generator)
    x = x - SHEAR * (draw() - 0.5) * torch.linspace(-0.5, 0.5, full)
    x = F.interpolate(x[:, None], LENGTH, mode="linear", align_corners=True)
    return x, y


def smooth_noise(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw Gaussian noise, smoothed by a Gaussian of 2 positions."""
    noise = CORRELATED * torch.randn(count, 1, length, generator=generator)
    reach = torch.arange(-8.0, 9.0)
    kernel = torch.exp(-0.5 * (reach / 2) ** 2)
    noise = F.pad(noise, (8, 8), mode="reflect")
    return F.conv1d(noise, (kernel / kernel.sum())[None, None])[:, 0]


def series_data(seed: int, toy: bool = False) -> Data:
    """Make 24,000 samples to train on, 6,000 held out and 8,000 queries."""
    generator = torch.Generator().manual_seed(seed)
    counts = (2000, 800, 1000) if toy else (24000, 6000, 8000)
    train, held_out, test = (series(count, generator) for count in counts)
    return Data(train, held_out[0], test)


def digits_model() -> nn.Sequential:
    """Build a network of five convolutions, in stages."""

    def stage(a: int, b: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU())

    return nn.Sequential(
        stage(1, 32),
        stage(32, 64),
        stage(64, 128, stride=2),
        stage(128, 192),
        stage(192, 192),
        nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)),
    )


def series_model() -> nn.Sequential:
    """Build a network of five convolutions over series, in stages."""

    def stage(a: int, b: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv1d(a, b, 5, stride=stride, padding=2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm1d(b), nn.ReLU())

    return nn.Sequential(
        stage(1, 32),
        stage(32, 128),
        stage(128, 128, stride=2),
        stage(128, 192),
        stage(192, 192),
        nn.Sequential(nn.Flatten(), nn.Linear(3840, 10)),
    )


@dataclass(frozen=True)
class Task:
    """A model and its data.

    Attributes:
        data: samples, by seed.
        model: the network, untrained.
    """

    data: Callable[..., Data]
    model: Callable[[], nn.Sequential]


TASKS = {
    "digits": Task(digits_data, digits_model),
    "series": Task(series_data, series_model),
}


def trained(task: Task, data: Data, seed: int, steps: int = 700) -> nn.Sequential:
    """Train a task's model by AdamW, one cycle."""
    torch.manual_seed(seed)
    model = task.model()
    best = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(best, 3e-3, total_steps=steps + 1)
    x, y = data.train
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        best.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows], label_smoothing=0.02).backward()
        best.step()
        cycle.step()
    return model.eval()
