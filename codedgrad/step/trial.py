"""One rehearsal: passes that are made on trial, and leave nothing behind."""

from __future__ import annotations

import copy
import math
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from codedgrad.data.seeding import drawn_since, reading_rng, seed_pass, states
from codedgrad.errors import ConfigError
from codedgrad.step.boundaries import Abandoned
from codedgrad.step.compare import Value
from codedgrad.step.loss import Loss, loss_of
from codedgrad.step.otherwise import other_values
from codedgrad.step.reach import Reached
from codedgrad.step.steady import Steady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from codedgrad.row.payload import Payload
    from codedgrad.step.subject import Subject

_SMALL = 1 << 16  # elements of a parameter whose gradient is compared
_OTHER = 1 << 20  # begins the steps whose seeds other values have
_AGAIN = 4  # passes that tell whether a weight is another one in every pass
_STATE = (
    "the loss function keeps state that each of its passes reads and changes: {}. How "
    "many passes a worker makes depends on who was late, and so would the gradient. "
    "Make it a buffer of the model (register_buffer), or change it between the steps"
)


class _NotCopiedError(Exception):
    """A batch that cannot be copied; its passes could not be made on trial."""


_under_way: set[int] = set()  # rehearsals


def rehearsing() -> bool:
    """Returns whether the pass that is computed is one of a rehearsal."""
    return bool(_under_way)


class Trial:
    """One rehearsal.

    Attributes:
        batch: the arguments of the loss function.
        place: where in the training that is, for messages.
        changed: names of what a pass has changed of the loss function's own state.
        uncopied: why the batch cannot be copied; empty: it can, as far as is known.
    """

    def __init__(
        self, loss_fn: Callable[..., Any], batch: Sequence[Any], place: str
    ) -> None:
        """Prepare; `of` comes next."""
        self.batch, self.place, self._loss_fn = batch, place, loss_fn
        self.changed: list[str] = []
        self.uncopied = ""

    def of(self, subject: Subject, payload: Payload, seed: int) -> Trial:
        """Returns itself, to be made with this model, from this seed on."""
        self._buffers, self._seed = payload.buffers, seed
        self._modules = subject.modules
        self._parameters = payload.layout.parameters
        small = [p for p in self._parameters if p.numel() <= _SMALL]
        self._probe = small[-1] if small else None
        return self

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, nothing that is done lasts.

        Where it is left because nobody needs the pass any more, the loss function's own
        values stay, as they do after any pass that is abandoned.
        """
        self._before = self._reached(keep=True)
        requires = [(p, p.requires_grad) for p in self._parameters]
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        _under_way.add(id(self))
        try:
            with reading_rng(), _eagerly(), self.without(_DropoutNd):
                yield
        except Abandoned:
            raise
        except BaseException:
            self._before.put_back()
            raise
        else:
            self._before.put_back()
        finally:
            _under_way.discard(id(self))
            for p, flag in requires:
                if p.requires_grad != flag:
                    p.requires_grad_(flag)
            self._buffers.restore()
            if cuda:
                torch.cuda.set_rng_state_all(cuda)

    def _reached(self, *, keep: bool = False) -> Reached:
        return Reached(self._loss_fn, self._modules, keep=keep, private=True)

    @contextmanager
    def without(self, kind: type) -> Iterator[None]:
        """Inside, modules of this kind are in evaluation mode."""
        modes = [(m, m.training) for m in self._modules]
        for module in self._modules:
            if isinstance(module, kind):
                module.training = False
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def whole(self, *, refuse: bool) -> Value | None:
        """Returns the value of the batch; None if its own pass will fail.

        It is None, too, where the batch cannot be copied: `uncopied` then says why.

        Args:
            refuse: whether the loss function may not read state that it changes.

        Raises:
            ConfigError: it does.
        """
        try:
            first = self.value(self.batch)
            now = self._reached()
            self.changed = sorted(now.changed(self._before))
            reads = False
            if self.changed and refuse:
                second = self.value(self.batch)
                self._before.put_back()
                # The third tells whether the first can be had again at all.
                reads = second.loss != first.loss and (
                    self.value(self.batch).loss == first.loss
                )
        except _NotCopiedError as error:
            self.uncopied = str(error)
            return None
        except Exception:  # noqa: BLE001 (the pass itself tells)
            return None
        self._before.put_back()
        if reads:
            raise ConfigError(_STATE.format(", ".join(self.changed[:4])))
        return first if _usable(first) else None

    def together(self, parts: Sequence[Sequence[Any]]) -> list[Value]:
        """Returns the values of the batch and of its pieces, with like random numbers.

        Where that cannot be, those values are random that have drawn some.
        """
        batches = self.batch, *parts
        values = [self.value(batch) for batch in batches]
        if not any(v.random for v in values):
            return values
        for drawn in (False, True):
            try:
                steady = [self._steady(batch, drawn=drawn) for batch in batches]
            except Abandoned:
                raise
            except Exception:  # noqa: BLE001 (it went well with others)
                continue
            if _says(steady[0]) and not any(v.random for v in steady):
                return steady
        return values

    def _steady(self, batch: Sequence[Any], *, drawn: bool) -> Value:
        with Steady(drawn=drawn):  # which begins anew
            return self.value(batch)

    def without_norms(self, parts: Sequence[Sequence[Any]]) -> list[Value]:
        """Returns the same, of a model whose batch norm treats samples alike."""
        with self.without(_BatchNorm):
            return self.together(parts)

    def other_weight(self, weight: float, seeds: range) -> float | None:
        """Returns a weight of the batch that the model gives with other values.

        Returns:
            None where it is the same with all of them, where the loss function cannot
            take such values or memory has no room for them, and where the weight is
            another one in every pass.
        """
        for seed in seeds:
            seed_pass(self._seed, _OTHER + seed, 0)
            with other_values(self._parameters) as changed:
                found = self._weight() if changed else None
            if found not in (None, weight):
                again = [self._weight() for _ in range(_AGAIN)]
                return found if all(w == weight for w in again) else None
        return None

    def _weight(self) -> float | None:
        try:
            return self._loss(self.batch)[0].weight
        except Abandoned:
            raise
        except Exception:  # noqa: BLE001 (values that it cannot take)
            return None
        finally:
            self._before.put_back()

    def value(self, batch: Sequence[Any]) -> Value:
        """Returns what the loss function gives for a batch."""
        found, random = self._loss(batch)
        number = math.nan if found.weight == 0.0 else float(found.value.detach())
        narrow = found.value.dtype.itemsize < 4
        return Value(number, found.weight, self._gradient(found), narrow, random)

    def _loss(self, batch: Sequence[Any]) -> tuple[Loss, bool]:
        """Returns the loss of a batch, and whether random numbers were drawn."""
        self._buffers.restore()
        # A loss function may change its batch, which the pass to come still needs.
        batch = _copied(batch)
        self._before.rewind()
        seed_pass(self._seed, 0, 0)
        before, on_device = states(), _device_state()
        found = loss_of(self._loss_fn(*batch), self.place)
        random = drawn_since(before) or on_device != _device_state()
        return found, random or self._before.drawn()

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


def _copied(batch: Sequence[Any]) -> tuple[Any, ...]:
    try:
        return copy.deepcopy(tuple(batch))
    except Exception as error:
        raise _NotCopiedError(f"{type(error).__name__}: {error}") from error


def _usable(value: Value) -> bool:
    return value.weight == 0.0 or math.isfinite(value.loss)


def _says(value: Value) -> bool:
    return value.weight != 0.0 and math.isfinite(value.loss)


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
