"""Gradients whose sums are known exactly, and in which every place is another."""

from __future__ import annotations

import torch

STEPS = 3  # different gradients, used in turn


def gradient(worker: int, step: int, count: int) -> torch.Tensor:
    """Return small integers that tell worker, step and position.

    They are pseudo-random, so that no slice of the sum is like another one; sums of
    some thousand workers are exact in float32.
    """
    generator = torch.Generator().manual_seed(1000 * worker + step)
    return torch.randint(1024, (count,), generator=generator).float()
