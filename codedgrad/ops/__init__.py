"""Kernels on tensors: one streaming pass where torch expressions make several.

`torch.ops.codedgrad.*`, with a schema, a CPU and a CUDA implementation and a fake one
(for `torch.compile`). The slow torch references have the same signatures.
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
