"""The stand-in as a predictor asks it: its answers are looked at before they count."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.inference.serving.query import Guess, tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("codedgrad")


class Second:
    """Asks a stand-in; what it cannot say in good order counts as not said.

    Args:
        stand_in: called with the model's inputs, it returns values and doubts; its
            attribute `threshold` says up to which doubt it is trusted.

    Attributes:
        errors: how often it raised, or answered something else.
    """

    def __init__(self, stand_in: Callable[..., Any]) -> None:
        if not callable(stand_in):
            raise ConfigError(
                f"stand_in is called with the model's inputs and returns (values, "
                f"doubts), got a {type(stand_in).__qualname__}"
            )
        self._stand_in = stand_in
        self.threshold()
        self.errors = 0
        self._learns = all(
            callable(getattr(stand_in, name, None)) for name in ("agreed", "observe")
        )
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def threshold(self) -> float:
        """Return up to which doubt the stand-in is trusted now.

        Raises:
            ConfigError: it does not say so.
        """
        found = getattr(self._stand_in, "threshold", None)
        try:
            value = float(found)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            value = math.nan
        if math.isnan(value):
            raise ConfigError(
                f"a stand-in has an attribute `threshold`, the largest doubt with "
                f"which it may answer, got {found!r}"
            )
        return value

    @property
    def learns(self) -> bool:
        """Whether exact answers teach it; see `compare`."""
        return self._learns

    def compare(self, guess: Guess, exact: Any) -> None:
        """Let a stand-in that can learn see the model's answers to a batch.

        It has `agreed(values, exact)`, which returns how far each answer is the
        model's, and `observe(doubts, agreed)`.
        """
        if not self._learns:
            return
        stand_in: Any = self._stand_in
        try:
            with self._lock, torch.no_grad():
                stand_in.observe(guess.doubts, stand_in.agreed(guess.values, exact))
        except Exception as error:  # noqa: BLE001 (answers are given as before)
            self._note(error, "the stand-in could not learn from an exact answer")

    def guess(self, inputs: tuple[Any, ...], rows: int) -> Guess | None:
        """Return what it says of a batch; None: nothing that can be used."""
        try:
            with torch.no_grad():
                values, doubts = self._stand_in(*inputs)
            doubts = _doubts(doubts, rows)
            trusted = (doubts <= self.threshold()) & _finite(values, rows)
        except Exception as error:  # noqa: BLE001 (the model itself answers)
            self._note(error, "the stand-in gave no answer; the model answers")
            return None
        return Guess(values, doubts, trusted)

    def _note(self, error: Exception, what: str) -> None:
        """Count an error, and log each one once."""
        self.errors += 1
        text = f"{type(error).__name__}: {error}"
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            log.error("%s: %s", what, text, exc_info=error)


def _doubts(doubts: Any, rows: int) -> Tensor:
    found = torch.as_tensor(doubts).detach().to("cpu", torch.float64).reshape(-1)
    if len(found) != rows:
        raise ConfigError(
            f"a stand-in returns one doubt for each of {rows} queries, got {len(found)}"
        )
    # A doubt that is NaN is no trust.
    found = torch.where(found.isnan(), 1.0, found)
    if bool(((found < 0.0) | (found > 1.0)).any()):
        raise ConfigError(
            f"a doubt is a probability, 0 to 1, got {float(found.min()):g} to "
            f"{float(found.max()):g}"
        )
    return found


def _finite(values: Any, rows: int) -> Tensor:
    """Return for each query whether all its values are finite."""
    fine = torch.ones(rows, dtype=torch.bool)
    for tensor in tensors_of(values):
        if tensor.dim() == 0 or len(tensor) != rows:
            raise ConfigError(
                f"a stand-in returns values of {rows} queries, got a tensor of shape "
                f"{tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() or tensor.is_complex():
            flat = tensor.detach().reshape(rows, -1).isfinite().all(dim=1)
            fine &= flat.cpu()
    return fine


def rows_of(value: Any, which: Tensor, rows: int) -> Any:
    """Return some rows of a batch's output.

    Args:
        value: tensors, arrays or lists with one entry for each query, or containers
            of these.
        which: the numbers of the rows.
        rows: how many the batch has.

    Raises:
        ConfigError: something in it is not by rows, so nobody knows whose it is.
    """
    if isinstance(value, Tensor) and value.dim() and len(value) == rows:
        return value[which.to(value.device)]
    if isinstance(value, np.ndarray) and value.ndim and len(value) == rows:
        return value[which.numpy()]
    if isinstance(value, dict):
        return type(value)((k, rows_of(v, which, rows)) for k, v in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rows_of(v, which, rows) for v in value))
    if type(value) in (list, tuple):
        if any(
            isinstance(one, (Tensor, np.ndarray, dict, list, tuple)) for one in value
        ):
            return type(value)(rows_of(v, which, rows) for v in value)
        if len(value) == rows:
            return type(value)(value[i] for i in which.tolist())
    shape = getattr(value, "shape", None)
    what = type(value).__qualname__ + ("" if shape is None else f" {tuple(shape)}")
    raise ConfigError(
        f"the output cannot be divided among its {rows} queries: it holds a {what}, "
        f"wanted tensors, arrays or lists whose first dimension counts the queries"
    )
