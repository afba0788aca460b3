"""What a loss function returns: a loss, and perhaps a weight and metrics beside.

With `(loss, weight)` the gradient of a step is

    sum_g w_g grad_g / sum_g w_g        over all passes g of the step,

whichever worker made which pass. With w_g the number of tokens that loss g is a mean
over, this is the gradient of the mean over all tokens of the step. A dict at the end is
one of metrics, see `codedgrad.step.metrics`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codedgrad.errors import CodedGradError, ConfigError, DataError
from codedgrad.step.metrics import Returned, metrics_of

log = logging.getLogger("codedgrad")


class Loss(NamedTuple):
    """One pass's loss.

    Attributes:
        value: a tensor of one number.
        weight: its weight; None where the loss function gave none.
        metrics: what it returned beside; None where it gave none.
    """

    value: Tensor
    weight: float | None
    metrics: Returned | None = None


class UnlikeBatchError(DataError):
    """A loss function failed with a batch that is made unlike the ones before."""


class Batches:
    """Calls a loss function; remembers of what the batches consist that it has taken.

    A collate function that returns something else for some batches makes the loss
    function fail with words that do not lead there (a missing argument, say).
    """

    def __init__(self) -> None:
        """Know no batch yet."""
        self._usual = ""
        self._types: list[type] | None = None  # of its members, if those say it all

    def call(self, loss_fn: Callable[..., Any], batch: tuple[Any, ...]) -> Any:
        """Returns what the loss function returns.

        Raises:
            UnlikeBatchError: it failed, and the batch is not made like those before.
        """
        types = list(map(type, batch))
        known = types == self._types
        made = self._usual if known else f"({', '.join(map(_made, batch))})"
        try:
            returned = loss_fn(*batch)
        except (CodedGradError, MemoryError):
            raise
        except Exception as error:
            if self._usual in ("", made):
                raise
            raise UnlikeBatchError(
                f"the loss function failed ({type(error).__name__}: {error}). It was "
                f"called with {made}, and with {self._usual} in the passes before: let "
                f"the dataset and collate_fn return the same for all batches"
            ) from error
        self._usual = made
        if not known:
            self._types = None if any(map(_contains, batch)) else types
        return returned


def _contains(value: Any) -> bool:
    """Returns whether `_made` looks into a value."""
    return isinstance(value, (Mapping, tuple))


def _made(value: Any) -> str:
    """Returns in short of what a value consists."""
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(str, value))}"
    if isinstance(value, tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def loss_of(returned: Any, place: str) -> Loss:
    """Returns loss, weight and metrics in what a loss function has returned.

    The loss of a pass with weight 0 is not looked at, so it may be NaN, and need not
    have a gradient.

    Args:
        returned: a tensor of one number, or a tuple of it, a weight or a dict of
            metrics, or both in this order.
        place: where in the training that was, for error messages.

    Raises:
        ConfigError: it is neither, the loss has no gradient, or the weight is negative,
            not finite or has a gradient, or a metric is no number.
    """
    value, weight, metrics = returned, None, None
    if isinstance(returned, (tuple, list)):
        if len(returned) in (2, 3) and isinstance(returned[-1], Mapping):
            metrics, returned = metrics_of(returned[-1], place), returned[:-1]
            value = returned[0] if len(returned) == 1 else returned
        if len(returned) == 2:
            value, weight = returned[0], _weight(returned[1], place)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"the loss function must return one number as a tensor, or that and a "
            f"weight or a dict of metrics or both: loss, (loss, weight), (loss, "
            f"metrics) or (loss, weight, metrics). It returned {got} in {place}; "
            f"reduce a loss that has several numbers, e.g. with .mean()"
        )
    if not value.requires_grad and weight != 0.0:
        raise ConfigError(
            f"the loss of {place} has no gradient; compute it from the model's "
            f"output, without torch.no_grad() or .detach()"
        )
    return Loss(value, weight, metrics)


def refuse_twice(
    returned: Any, names: Sequence[str], parameters: Sequence[Tensor], place: str
) -> None:
    """Refuse a loss whose gradient its function has left in `p.grad` already.

    A gradient of something else there, such as a penalty with a backward of its own, is
    added to the loss's, as the user wants it.

    Raises:
        ConfigError: the gradient would count twice, or nothing else has one.
    """
    left = [p.grad for p in parameters]
    named = [n for n, g in zip(names, left, strict=True) if not _is_zero(g)]
    loss = returned[0] if isinstance(returned, (tuple, list)) and returned else returned
    if not named or not isinstance(loss, Tensor):
        return
    if loss.requires_grad:
        try:
            found = torch.autograd.grad(
                loss, list(parameters), retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # it cannot be computed twice, or not like this
            return
        if not all(map(_equal, found, left)):
            return
    raise ConfigError(
        f"the loss function has left a gradient in p.grad of {named[0]!r} in {place}, "
        f"which the step's own would be added to: its gradient would count twice. Take "
        f".backward() out of the loss function and return the loss, without .detach(); "
        f"for gradients inside of it use torch.autograd.grad"
    )


def _is_zero(grad: Tensor | None) -> bool:
    return grad is None or (grad.layout is torch.strided and not bool(grad.any()))


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return _is_zero(a) and _is_zero(b)
    return a.layout == b.layout and torch.equal(a, b)


def _weight(weight: Any, place: str) -> float:
    wanted = "wanted a finite number, 0 or more, such as the number of tokens"
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ConfigError(
            f"the weight of the loss of {place} has a gradient, which would be lost; "
            f"{wanted}: give weight.detach() if that is what you mean"
        )
    try:
        number = float(weight)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(
            f"the weight of the loss of {place} is a {type(weight).__name__}; {wanted}"
        ) from None
    if not 0.0 <= number < math.inf:
        raise ConfigError(f"the weight of the loss of {place} is {number}; {wanted}")
    if 0.0 < number < 1.0:
        _odd.say(number, place)
    return number


class _Odd:
    """Says once that a weight looks like a metric."""

    def __init__(self) -> None:
        self.said = False

    def say(self, number: float, place: str) -> None:
        if self.said:
            return
        self.said = True
        log.warning(
            "the loss function returned (loss, weight), and the weight of %s is %.4g. "
            "If it is an accuracy or another metric, return it in a dictionary: return "
            'loss, {"accuracy": accuracy}. If it is a mean, give the sum in its place, '
            "since the gradient is sum(weight * grad) / sum(weight) over all passes "
            "(this is said once)",
            place,
            number,
        )


_odd = _Odd()
