"""A rehearsal of the first own pass: is a shard the sum of its pieces?

A helper cuts a late shard into pieces, which is right only where the loss of a shard is
the mean of the losses of its pieces, weighted by their samples, or by what the loss
function gives as weight. It is not for a sum, for a loss that is divided by a statistic
of the batch, for one that compares the samples of a batch, and for a mean over tokens
that gives no weight. Nobody can see that in the code of a loss function, so a worker
tries it once, with its first batch, before its first pass: it computes the loss of the
batch and those of its pieces, and for each of them the gradient of one small parameter.

Where they differ, helpers take whole shards from then on (see `codedgrad.step.pieces`).
Where the weights of the pieces do not add up to the shard's, because they are means (an
accuracy, say), there is a ConfigError. So there is where a loss function keeps state
that its passes change and read, in places of which a row knows nothing: the gradient
would depend on how many passes a worker has made, and so on who was late.

A rehearsal leaves nothing behind: random numbers, buffers, flags and what the loss
function keeps in plain values (`codedgrad.step.keep`) are put back.

[Note: random losses] Dropout is switched off. Where a loss function still draws random
numbers, its pieces draw others than the shard does, so only coarse differences count.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.modules.dropout import _DropoutNd

from codedgrad.codes.whole import helps_in_pieces
from codedgrad.data.seeding import drawn_since, reading_rng, seed_pass, states
from codedgrad.errors import ConfigError
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.compare import Value, difference, means_as_weights
from codedgrad.step.functions import codes_of
from codedgrad.step.loss import Loss, loss_of
from codedgrad.step.reach import Reached
from codedgrad.step.slices import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.row.payload import Payload
    from codedgrad.step.subject import Subject

    Key = tuple[int, ...]

log = logging.getLogger("codedgrad")

_SEEDS = 3  # of a random loss
_LOOKS = 4  # own passes, for weights that say nothing yet
_STATE_LOOKS = (2, 4, 8, 16)  # own passes after the first, where there is state
_SMALL = 1 << 16  # elements of a parameter whose gradient is compared
_STATE = (
    "the loss function keeps state that each of its passes reads and changes: {}. How "
    "many passes a worker makes depends on who was late, and so would the gradient. "
    "Make it a buffer of the model (register_buffer), or change it between the steps"
)


class Asked(NamedTuple):
    """What a rehearsal is to find out.

    Attributes:
        pieces: whether helpers cut shards into pieces, and need not.
        helped: whether anybody helps at all.
        seed: of the random numbers.
    """

    pieces: bool
    helped: bool
    seed: int

    @classmethod
    def of(cls, code: Code, seed: int, *, choose: bool) -> Asked:
        """Returns what is to be found out where this code says who computes what.

        `choose` says whether helpers take whole shards where that is better.
        """
        listed = zip(code.work, code.required, strict=True)
        helped = any(len(nodes) > required for nodes, required in listed)
        return cls(choose and helps_in_pieces(code), helped, seed)


class Rehearsal:
    """Tries the passes of one worker's own items.

    Attributes:
        found: whether helpers have to take whole shards.
    """

    def __init__(self, subject: Subject, payload: Payload, asked: Asked) -> None:
        """Begin; nothing is tried before the first pass."""
        self.subject, self.payload, self.asked = subject, payload, asked
        # By the ids of a loss function's codes, which are kept alive here: its own
        # passes so far, or None where there is nothing left to look at.
        self._looks: dict[Key, int | None] = {}
        self._codes: list[Any] = []
        self._known: set[Key] = set()  # functions of which pieces are known
        self._state: set[Key] = set()  # functions that keep state
        self.found = False

    def go_on_from(self, before: Rehearsal) -> None:
        """Take over what an earlier laying out of the same model has settled."""
        if before.found:
            self._looks, self._codes = before._looks, before._codes
            self._known, self._state = before._known, before._state

    def look(
        self,
        loss_fn: Callable[..., Any],
        batch: Sequence[Any],
        sizes: Sequence[int],
        place: str,
    ) -> None:
        """Hear of an own pass before it is made; most are not rehearsed.

        Args:
            loss_fn: the loss function.
            batch: its arguments.
            sizes: samples of each piece of the batch.
            place: where in the training that is, for messages.

        Raises:
            ConfigError: the weight is a mean, or the loss function reads state of its
                own that it changes.
        """
        codes = codes_of(loss_fn)
        key = tuple(map(id, codes))
        if key not in self._looks:
            self._looks[key] = 0 if self.asked.helped else None
            self._codes.append(codes)
        looks = self._looks[key]
        if looks is None:
            return
        self._looks[key] = looks + 1
        pieces = key not in self._known and looks < _LOOKS
        if pieces or (key in self._state and looks in _STATE_LOOKS):
            trial = _Trial(self, loss_fn, batch, place)
            with trial.apart():
                value = trial.whole()
                if trial.changed:
                    self._state.add(key)
                if pieces and value is not None and self._compare(trial, value, sizes):
                    self._known.add(key)
        over = key in self._known or looks + 1 >= _LOOKS
        if over and (key not in self._state or looks >= _STATE_LOOKS[-1]):
            self._looks[key] = None

    def _compare(self, trial: _Trial, whole: Value, sizes: Sequence[int]) -> bool:
        """Compare a shard with its pieces; returns whether it is known what they are.

        Raises:
            ConfigError: the weights are means.
        """
        many = [n for n in sizes if n > 0]
        if len(many) < 2 or not self.asked.pieces or self.found:
            return True
        parts = cut(trial.batch, many)
        if parts is None:
            return True
        values: list[Value] = []
        for part in parts:
            try:
                values.append(trial.value(part))
            except Exception as error:  # noqa: BLE001 (of the user's own)
                self._find(f"it fails for a piece, {type(error).__name__}: {error}")
                return True
        if whole.weight is not None:
            known, text = means_as_weights(whole, values)
            if text:
                raise ConfigError(text)
            if not known:
                return False
        others = []
        if any(v.random for v in (whole, *values)):
            others = [trial.value(trial.batch, i).loss for i in range(1, _SEEDS)]
        known, text = difference(whole, values, many, others)
        if text:
            self._find(text)
        return known

    def _find(self, text: str) -> None:
        self.found = True
        log.warning(
            "the loss function is another function of a shard than of its pieces: %s. "
            "So helpers take whole shards (this is said once). A mean over something "
            "else than samples, such as tokens, should be returned as (loss, weight), "
            "see the README, and a sum divided by the number of samples; for others, "
            "pieces=False says that whole shards are meant",
            text,
        )


class _Trial:
    """One rehearsal.

    Attributes:
        batch: the arguments of the loss function.
        changed: names of what a pass has changed of the loss function's own state.
    """

    def __init__(
        self,
        owner: Rehearsal,
        loss_fn: Callable[..., Any],
        batch: Sequence[Any],
        place: str,
    ) -> None:
        self.batch, self._loss_fn, self._place = batch, loss_fn, place
        self.changed: list[str] = []
        self._buffers, self._seed = owner.payload.buffers, owner.asked.seed
        self._modules = owner.subject.modules
        parameters = owner.payload.layout.parameters
        small = [p for p in parameters if p.numel() <= _SMALL]
        self._probe = small[-1] if small else None
        self._parameters = parameters

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, nothing that is done lasts.

        Where it is left because nobody needs the pass any more, the loss function's own
        values stay, as they do after any pass that is abandoned.
        """
        self._before = Reached(self._loss_fn, self._modules, keep=True)
        modes = [(m, m.training) for m in self._modules]
        requires = [(p, p.requires_grad) for p in self._parameters]
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        for module in self._modules:
            if isinstance(module, _DropoutNd):
                module.training = False
        try:
            with reading_rng(), _eagerly():
                yield
        except Abandoned:
            raise
        except BaseException:
            self._before.put_back()
            raise
        else:
            self._before.put_back()
        finally:
            for module, mode in modes:
                module.training = mode
            for p, flag in requires:
                if p.requires_grad != flag:
                    p.requires_grad_(flag)
            self._buffers.restore()
            if cuda:
                torch.cuda.set_rng_state_all(cuda)

    def whole(self) -> Value | None:
        """Returns the value of the batch; None if its own pass will fail.

        Raises:
            ConfigError: the loss function reads state of its own that it changes.
        """
        try:
            first = self.value(self.batch)
            now = Reached(self._loss_fn, self._modules)
            self.changed = sorted(now.changed(self._before))
            reads = False
            if self.changed:
                second = self.value(self.batch)
                self._before.put_back()
                # The third tells whether the first can be had again at all.
                reads = second.loss != first.loss and (
                    self.value(self.batch).loss == first.loss
                )
        except Exception:  # noqa: BLE001 (the pass itself tells)
            return None
        self._before.put_back()
        if reads:
            raise ConfigError(_STATE.format(", ".join(self.changed[:4])))
        empty = first.weight == 0.0
        return first if empty or math.isfinite(first.loss) else None

    def value(self, batch: Sequence[Any], seed: int = 0) -> Value:
        """Returns what the loss function gives for a batch."""
        self._buffers.restore()
        # A loss function may change its batch, which the pass to come still needs.
        batch = copy.deepcopy(tuple(batch))
        seed_pass(self._seed, seed, 0)
        before, on_device = states(), _device_state()
        found = loss_of(self._loss_fn(*batch), self._place)
        random = drawn_since(before) or on_device != _device_state()
        random = random or self._before.drawn()
        number = math.nan if found.weight == 0.0 else float(found.value.detach())
        narrow = found.value.dtype.itemsize < 4
        return Value(number, found.weight, self._gradient(found), narrow, random)

    def _gradient(self, loss: Loss) -> Tensor | None:
        """Returns the gradient of one small parameter, if it has one."""
        if self._probe is None or loss.weight == 0.0:
            return None
        try:
            (g,) = torch.autograd.grad(loss.value, [self._probe], allow_unused=True)
        except RuntimeError:  # reentrant checkpoints give no single gradients
            return None
        dense = g is not None and g.layout is torch.strided
        return g.detach().double() if dense else None


def _device_state() -> bytes:
    if not torch.cuda.is_initialized():
        return b""
    return torch.cuda.get_rng_state().numpy().tobytes()


def _eagerly() -> Any:
    """Returns a context in which nothing is compiled for the sizes of pieces."""
    stance = getattr(torch.compiler, "set_stance", None)
    if "torch._dynamo" not in sys.modules or stance is None:
        return nullcontext()
    return stance("force_eager")
