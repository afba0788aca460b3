"""The time of a pass of ResNet-18 on 32 x 32 images, by size of the micro-batch."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

IMAGES = 128  # images of a worker in a step
SIZES = (8, 16, 32, 64, 128)


def images(data: Path | None, count: int) -> tuple[Tensor, Tensor, str]:
    """Return `count` images [count, 3, 32, 32], their labels, and where they come from.

    `data` may be None (images are synthetic), an .npz file with arrays `images` (3
    channels of 0 to 255, first or last) and `labels`, or the folder that
    launch/train.py takes.
    """
    if data is None:
        torch.manual_seed(0)
        shape = (count, 3, 32, 32)
        return torch.randn(shape), torch.randint(0, 10, (count,)), "synthetic"
    if data.suffix == ".npz":
        with np.load(data, allow_pickle=False) as file:
            x, y = file["images"][:count], file["labels"][:count]
        x = x if x.shape[1] == 3 else x.transpose(0, 3, 1, 2)
        x = torch.from_numpy(np.ascontiguousarray(x)).float() / 127.5 - 1.0
        return x, torch.from_numpy(y.astype(np.int64)), "given"
    _launch()
    import tasks

    x, y = tasks.make("cifar10", data).train[:count]
    return x, y, "CIFAR-10"


def measure(
    data: Path | None, device: torch.device, *, rounds: int, toy: bool
) -> dict[str, Any]:
    """Time forward and backward of one micro-batch, the sizes in turn."""
    _launch()
    import models

    sizes = SIZES[:2] if toy else SIZES
    x, y, source = images(data, max(sizes))
    x, y = x.to(device), y.to(device)
    torch.manual_seed(0)
    model = models.resnet18().to(device)
    seconds: dict[int, list[float]] = {s: [] for s in sizes}
    for turn in range(rounds + 1):
        for size in sizes:
            _wait(device)
            begin = time.perf_counter()
            F.cross_entropy(model(x[:size]), y[:size]).backward()
            _wait(device)
            if turn > 0:  # the first round warms up
                seconds[size].append(time.perf_counter() - begin)
            model.zero_grad()
    medians = {s: statistics.median(v) for s, v in seconds.items()}
    most = max(sizes)
    each = {s: most // s * t for s, t in medians.items()}  # a pass in micro-batches
    # The cost is a least-squares fit of pass / whole pass = 1 + cost * log2(number of
    # micro-batches).
    logs = np.array([np.log2(most / s) for s in sizes])
    more = np.array([each[s] / each[most] - 1.0 for s in sizes])
    cost = max(0.0, float(logs @ more / max(float(logs @ logs), 1e-12)))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "images": source,
        "device": name,
        "threads": torch.get_num_threads(),
        "images_of_a_pass": most,
        "pass_s": each[most],
        "micro_batch_s": {str(s): t for s, t in medians.items()},
        "micro_cost": round(cost, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "rounds": rounds,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _launch() -> None:
    folder = str(Path(__file__).parent.parent / "launch")
    if folder not in sys.path:
        sys.path.insert(0, folder)
