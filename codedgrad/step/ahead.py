"""Batches that a worker need not load: for exchanges that are decoded without it.

A sampler draws a batch before it is used, with a DataLoader's workers many batches
before. `BatchesAhead` foresees in which exchange a batch will be used, and lets the
sampler draw a few samples in place of all where that exchange is decoded already.

    exchange of the batch = exchange now + batches drawn and not yet used

This holds if every backward pass takes one batch. It is believed only while the number
of batches that are drawn and not used stays the same from draw to draw. With two passes
per batch, steps without a batch and the like it does not, and nothing is skipped. If
it was wrong nevertheless, a forward sees the small batch in an exchange that is not
decoded. The worker then sends no row and waits for the copy of another worker, which
had to draw that batch in full: otherwise no exchange before it would be decoded.

Where the small batch could not be recognised, or would not do, nothing is skipped:
without a model, with batch norm, or if the first dimension of the model's input is not
the batch.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from codedgrad.data.batch_sampler import SMALL

if TYPE_CHECKING:
    from codedgrad.data import ShardBatchSampler

_STEADY = 3  # draws in a row, beside those of the batches that are under way


class PassCounter(Protocol):
    """Knows how far a worker is."""

    def passes_made(self) -> int:
        """Returns the number of backward passes so far."""

    def decoded_after(self, passes: int) -> bool:
        """Returns whether the exchange is decoded that holds the pass so many later."""


class BatchesAhead:
    """Tells a sampler which batches are not needed; `sampler.skip` calls it."""

    def __init__(
        self,
        sampler: ShardBatchSampler,
        model: torch.nn.Module | None,
        counter: PassCounter,
    ) -> None:
        """Becomes the sampler's `skip`. `counter` is held weakly."""
        self._counter = weakref.ref(counter)
        self._sampler = weakref.ref(sampler)
        self._full = sampler.samples
        self._recognised = False  # all batches so far had their size
        self._off = model is None or self._full <= SMALL or has_batch_norm(model)
        self._first_pass = self._unused = self._steady = 0
        self._skipped = False
        sampler.skip = self

    def __call__(self, index: int) -> bool:
        """Returns whether batch `index` of the epoch, drawn now, is needless."""
        counter = self._counter()
        if counter is None or self._off:
            return False
        made = counter.passes_made()
        if index == 0:
            self._first_pass = made
        unused = index - (made - self._first_pass)
        self._steady = self._steady + 1 if unused == self._unused else 0
        self._unused = unused
        if unused < 0 or self._steady < unused + _STEADY or not self._recognised:
            return False
        needless = counter.decoded_after(unused)
        self._skipped |= needless
        return needless

    def is_small(self, inputs: Any) -> bool:
        """Returns whether a forward for training has got a batch that was skipped."""
        if self._off:
            return False
        first = next((x for x in inputs if isinstance(x, torch.Tensor)), None)
        size = first.shape[0] if first is not None and first.dim() else 0
        if self._skipped and size == SMALL:
            return True
        self._recognised = size == self._full
        self._off = not self._recognised and not self._skipped
        return False

    def remove(self) -> None:
        """Lets the sampler draw all batches in full."""
        sampler = self._sampler()
        if sampler is not None and sampler.skip is self:
            sampler.skip = None


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Returns whether the model normalises over the batch."""
    return any(isinstance(m, _BatchNorm) for m in model.modules())
