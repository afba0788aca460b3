"""Do all workers still have the same parameters and buffers?

They have if they began with the same values and made the same updates. An optimizer
with another learning rate, a scheduler that heard another loss, a gradient that was
clipped on one worker, or a checkpoint that was loaded by one, ends that without a word:
the workers drift apart, and a decoded sum is then that of several models.

So the workers compare digests of all values before the first step, in a message of its
own. In the steps 1, 2, 4, 8, ... after it, and in every 256th, a digest is a part of
the word that the check bits of the rows carry (see `codedgrad.step.check`), at no
message's cost; it reads the values once. In every 16th step there is a digest of a
small part of one tensor, another one each time. An update that differs changes all
tensors, so it is found there; what was written to a single one may take longer.
"""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING, Protocol

from codedgrad.job import agreement
from codedgrad.row.digest import tensor_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from codedgrad.job.runtime import Runtime

log = logging.getLogger("codedgrad")

_EVERY = 256  # steps, at least
_PARTLY = 16  # steps
_PART = 1 << 13  # elements
_START = (
    "Start from the same values: call codedgrad.broadcast_parameters("
    "model.state_dict(), root_rank=0) on all workers before the first step."
)
_LATER = (
    "They were the same when this training began, so a worker has made another update "
    "since: all need the same optimizer, learning rate, schedule and clipping, and "
    "what changes the model between the steps has to do it alike on all. Buffers that "
    "each worker keeps for itself are named in model._ddp_params_and_buffers_to_ignore."
)
_UNLIKE = (
    "parameters or buffers are no longer the same on all workers, whose hardware is "
    "unlike: an optimizer may round otherwise there. They are compared no more (this "
    "is said once); codedgrad.broadcast_parameters(model.state_dict()) now and then "
    "makes them the same"
)


class Named(Protocol):
    """Returns parameters and buffers, with their values before the step, by name."""

    def __call__(self, *, lasting: bool) -> Iterable[tuple[str, Tensor]]:
        """With `lasting`, leave out what may be a cache of each worker's own."""


class ValuesOfAll:
    """Compares the values of parameters and buffers, in some of the steps."""

    def __init__(
        self,
        job: Runtime,
        named: Named,
        modes: Callable[[], list[tuple[str, str]]] = list,
    ) -> None:
        """Compare the tensors that `named` returns over all workers of `job`.

        Args:
            job: all workers.
            named: the tensors.
            modes: returns more (name, value) pairs that are compared with them.
        """
        self._job = job
        self._named, self._modes = named, modes
        self._first: int | None = None  # the step before which all were compared
        self._off = False
        self._looked = -1  # the step whose word holds a digest

    def word(self, step: int) -> int:
        """Return what the word of a step holds of the values; 0 in most steps.

        Collective before the first step.

        Raises:
            MismatchError: the values differ before the first step.
        """
        if self._first is None:
            self._compare("values of parameters and buffers", _START, lasting=False)
            self._first = step
            return 0
        since = step - self._first
        if self._off or since <= 0:
            return 0
        if since & (since - 1) and since % _EVERY:
            return 0 if since % _PARTLY else self._part(step, since // _PARTLY)
        self._looked = step
        digests = (f"{name} {text}" for name, text in self._pairs(lasting=True))
        return zlib.crc32("".join(digests).encode()) + 1

    def _part(self, step: int, turn: int) -> int:
        """Return what the word holds of a part of one tensor; 0 on a device."""
        named = [
            (name, t)
            for name, t in self._named(lasting=True)
            if t.device.type == "cpu" and t.numel() and t.is_contiguous()
        ]
        if not named:
            return 0
        self._looked = step
        rounds, index = divmod(turn, len(named))
        name, t = named[index]
        begin = rounds * _PART % t.numel()
        text = tensor_digest(t.detach().view(-1)[begin : begin + _PART])
        return zlib.crc32(f"{name} {text}".encode()) + 1

    def looked(self, step: int) -> bool:
        """Return whether the word of a step holds a digest of the values."""
        return self._looked == step

    def compare(self, step: int) -> bool:
        """Compare the values after the words of a step differed. Collective.

        Returns:
            Whether they differed, on unlike hardware, where that is no error.

        Raises:
            MismatchError: they differ.
        """
        mine = agreement.digest_of(self._pairs(lasting=True))
        occasion = f"to compare the values before step {step}"
        if len(set(self._job.gather(mine, occasion))) == 1:
            return False
        if not self._job.unlike:
            what = f"values of parameters and buffers before step {step}"
            self._compare(what, _LATER, lasting=True)
        self._off = True
        log.warning(_UNLIKE)
        return True

    def _compare(self, what: str, remedy: str, *, lasting: bool) -> None:
        agreement.check_agreement(what, self._pairs(lasting=lasting), remedy)

    def _pairs(self, *, lasting: bool) -> list[tuple[str, str]]:
        named = self._named(lasting=lasting)
        found = [(f"{name!r}", f"digest {tensor_digest(t)}") for name, t in named]
        return [*found, *self._modes()]
