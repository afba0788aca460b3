"""The encode kernels on tensors of very unequal sizes, for the kernels' benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.ops.library import NAMES, kernels

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = 200  # tensors that are a quarter of the elements; one is the rest


def gradients(count: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return an embedding's gradient between those of many small tensors."""
    small = max(1, count // (4 * SMALL))
    sizes = [small] * (SMALL // 2), [small] * (SMALL - SMALL // 2)
    large = max(1, count - SMALL * small)
    return [
        torch.randn(n, device=device).to(dtype) for n in (*sizes[0], large, *sizes[1])
    ]


def moved(inputs: list[Tensor]) -> int:
    """Return the bytes that encoding them reads and writes."""
    return sum(g.numel() * (g.element_size() + 4) for g in inputs)


def encode(inputs: list[Tensor]) -> Callable[[], Any]:
    """Return an action that encodes them into a row of fp32, by one call."""
    leaf = [(g.data_ptr(), g.numel(), NAMES[g.dtype]) for g in inputs]
    device = inputs[0].device
    out = torch.empty(sum(g.numel() for g in inputs), device=device)
    where: dict[str, Any] = {"sums": [], "type": "float32", "wire": ""}
    if device.type == "cpu":
        module = kernels("_ops")
        return lambda: module.encode(
            leaf, 0.5, out=out.data_ptr(), streamed=False, **where
        )
    flag, module = torch.zeros((), device=device), kernels("_ops_cuda")
    where |= {"pieces": kernels("_ops").table_of(leaf), "table": 0, "weight": 0.5}
    stream = torch.cuda.current_stream(device).cuda_stream
    return lambda: module.encode(
        out=out.data_ptr(), flag=flag.data_ptr(), stream=stream, **where
    )
