"""Inputs whose sums are exact in every type, and what all devices must agree on."""

from __future__ import annotations

import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [0, 1, 7, 8, 9, 511, 513, 4099]
COUNTS = [1, 2, 3, 4, 5, 8, 9]


def integers(
    k: int, size: int, dtype: torch.dtype, device: str = "cpu", offset: int = 0
) -> list[torch.Tensor]:
    """Small integers; views that begin `offset` elements into their memory."""
    generator = torch.Generator().manual_seed(k * 1000 + size)
    values = torch.randint(-3, 4, (k, size + offset), generator=generator)
    return [row[offset:] for row in values.to(device, dtype)]


def exact_gram(inputs: list[torch.Tensor]) -> torch.Tensor:
    """Inner products in integers."""
    x = torch.stack([t.cpu().reshape(-1).to(torch.int64) for t in inputs])
    return (x[:, None, :] * x[None, :, :]).sum(-1).double()
