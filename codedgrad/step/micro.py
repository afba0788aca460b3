"""An own pass is one of a shard, or of a micro-batch: is that what the user means?

A step computes the mean of the losses of shards, which is the loss of the batch only
where that is a mean over samples, or over what the loss function gives as weight. A
mean over the tokens of a shard, which weighs each shard alike, is another one, as it is
with DDP. With `same_bits=True` the same is true of the micro-batches of a shard: a
contrastive loss of micro-batches is another function, and so is a model with batch
norm, which takes its statistics from a micro-batch. All workers compute the same, so
that is no error; it is told once, by worker 0, with the remedy.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

from codedgrad.job import runtime
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.compare import difference
from codedgrad.step.pieces import normalises, own_is_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from codedgrad.codes import Code
    from codedgrad.data import StepShards
    from codedgrad.job.settings import RunSettings
    from codedgrad.step.trial import Trial

log = logging.getLogger("codedgrad")
_REMEDY = (
    "pieces=False, or a code with micro=1, computes whole shards, whose bits do not "
    "depend on who was late either"
)
_LOSS = (
    "same_bits=True computes a shard as its %d micro-batches, and the loss function is "
    "another function of a batch than of its parts: %s. So it is trained on "
    "micro-batches here, which is another function than of whole shards. %s; a mean "
    "over something else than samples, such as tokens, should be returned as (loss, "
    "weight), see the README (this is said once)"
)
_SHARDS = (
    "the loss function is another function of a batch than of its parts: %s. Each "
    "worker computes it of its own shard, and the gradient is that of the mean over "
    "the shards, as with DDP, not that of the loss of the whole batch. A mean over "
    "something else than samples, such as tokens, should be returned as (loss, "
    "weight), see the README, and a sum divided by the number of samples; "
    "pieces=False says that the loss of a shard is meant (this is said once)"
)
_NORM = (
    "same_bits=True computes a shard as its %d micro-batches, and the batch norm %r "
    "takes mean and deviation from each of them, not from the shard. %s (this is said "
    "once)"
)


def tell_of_norm(code: Code, modules: Sequence[nn.Module], run: RunSettings) -> None:
    """Warn where batch norm is trained on micro-batches, though not chosen so."""
    if own_is_whole(run) or code.micro == 1 or run.pieces is True:
        return
    named = chain.from_iterable(m.named_modules() for m in modules)
    norm = next((n for n, m in named if normalises(m) and m.training), None)
    if norm is not None:
        log.warning(_NORM, code.micro, norm, _REMEDY)


def wider(
    batch: Sequence[Any], shards: StepShards, span: tuple[int, int], micro: int
) -> tuple[Sequence[Any], tuple[int, int]]:
    """Returns a batch that has parts, and its span, for one of a single sample.

    It is the micro-batch with a neighbour of its shard, or the shard with a neighbour,
    where this can be read here.
    """
    width = span[1] - span[0]
    end = span[0] // micro * micro + micro if micro > 1 else len(shards.sizes)
    begin = max(0, min(span[0], end - 2 * width))
    both = begin, begin + 2 * width
    sampler = shards.sampler
    here = sampler.helpable and getattr(sampler, "readable_here", False)
    one = shards.samples(*span) * getattr(sampler, "rows", 1) == 1
    if not one or shards.samples(*both) < 2 or not here:
        return batch, span
    return shards.read(*both), both


def compare(
    trial: Trial, parts: list[Any] | None, sizes: list[int]
) -> tuple[bool, str]:
    """Returns whether it is known how a batch and its parts differ, and how, or "".

    Batch norm, of which `tell_of_norm` warns, is in evaluation mode meanwhile.
    """
    if parts is None or len(sizes) < 2:
        return False, ""
    try:
        first, *values = trial.without_norms(parts)
    except Abandoned:
        raise
    except Exception:  # noqa: BLE001 (parts are smaller than any pass will be)
        return False, ""
    known, text = difference(first, values, sizes)
    if text and any(v.random for v in (first, *values)):
        return False, ""  # perhaps because of other random numbers
    return known, text


def tell_of_loss(passes: int, text: str) -> None:
    """Warn that a loss function is another one of parts, as `compare` says.

    Worker 0 does, for all; `passes` is the number of a shard's passes.
    """
    if runtime.current().rank != 0:
        return
    if passes > 1:
        log.warning(_LOSS, passes, text, _REMEDY)
    else:
        log.warning(_SHARDS, text)
