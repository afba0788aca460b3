"""Sparse gradients in the drop-in: they travel densely, and come back sparse.

The gradient of an embedding with `sparse=True` is made dense as it comes. What the
exchange leaves in `p.grad` is made sparse again, without its rows of zeros, since an
optimizer for sparse gradients (SparseAdam) wants nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from codedgrad.step.attach import Weakly

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class SparseGradients:
    """Makes sparse gradients dense, and decoded ones sparse again."""

    def __init__(self, parameters: Iterable[Tensor], *, back: bool) -> None:
        """Attach the hooks, in front of those that look at gradients.

        Args:
            parameters: whose gradients may be sparse.
            back: whether they become sparse again.
        """
        self._back = back
        self._sparse: dict[int, tuple[Tensor, int]] = {}  # and its sparse dimensions
        hook = Weakly(self, SparseGradients._came)
        self._handles = [p.register_post_accumulate_grad_hook(hook) for p in parameters]

    def _came(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None and gradient.layout is torch.sparse_coo:
            self._sparse[id(parameter)] = parameter, gradient.sparse_dim()
            parameter.grad = gradient.to_dense()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def make_dense(self) -> None:
        """Make dense what earlier exchanges left sparse, before a row is written."""
        for parameter, _ in self._sparse.values():
            if (gradient := parameter.grad) is not None and gradient.is_sparse:
                parameter.grad = gradient.to_dense()

    def put_back(self) -> None:
        """Make the decoded gradients sparse whose own ones have been so."""
        if not self._back:
            return
        for parameter, dimensions in self._sparse.values():
            if (gradient := parameter.grad) is not None and not gradient.is_sparse:
                parameter.grad = gradient.to_sparse(dimensions)
