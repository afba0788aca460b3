"""Kernels on tensors, with one streaming pass where torch expressions make several.

Each is an operator `torch.ops.codedgrad.NAME`, with a schema, a CPU and a CUDA
implementation and a fake one (for `torch.compile`). Beside it stands a slow reference
in torch with the same signature.
"""

from __future__ import annotations

from codedgrad.ops.gram import gram, gram_reference
from codedgrad.ops.weighted_sum import (
    weighted_sum,
    weighted_sum_out,
    weighted_sum_reference,
)

__all__ = [
    "gram",
    "gram_reference",
    "weighted_sum",
    "weighted_sum_out",
    "weighted_sum_reference",
]
