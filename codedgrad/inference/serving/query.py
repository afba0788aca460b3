"""One query: from its coming to its answer."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from codedgrad.errors import CodedGradError

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.inference.serving.seen import Shape


class Answer(NamedTuple):
    """What came of a query, or of a batch of them.

    Attributes:
        value: the model's output, or the stand-in's.
        exact: whether the model itself has computed it.
        doubt: the stand-in's doubt for each query of the batch; zeros where exact.
        who: the worker that computed it.
        seconds: from the query's coming to its answer.
    """

    value: Any
    exact: bool
    doubt: Tensor
    who: int
    seconds: float


class Guess(NamedTuple):
    """What the stand-in says of a batch.

    Attributes:
        values: its outputs.
        doubts: one for each query, in [0, 1].
        trusted: bool for each query, whether its doubt allows to answer with it.
    """

    values: Any
    doubts: Tensor
    trusted: Tensor


class Query:
    """A batch of queries under way; the first answer that comes counts.

    Attributes:
        number: of the query among those of its owner.
        inputs: what the model is called with.
        rows: how many queries the batch holds.
        shape: of the inputs; queries of one shape take about the same time.
        at_s: the seconds after which the stand-in may answer.
        begun_s: when it came, by `time.monotonic`.
        guess: what the stand-in says of it, once asked.
        guessed: whether the stand-in was asked.
        asked: the workers that were asked for help.
        next_ask_s: when the next one is asked.
        audited: it is computed although the stand-in has answered, so that the answer
            can be compared.
        over: nobody computes it here any more.
        then: called once when it is done, before those who wait hear of it.
    """

    def __init__(
        self, number: int, inputs: tuple[Any, ...], rows: int, shape: Shape, at_s: float
    ) -> None:
        """Begin to count its seconds."""
        self.number, self.inputs, self.rows = number, inputs, rows
        self.shape, self.at_s = shape, at_s
        self.begun_s = time.monotonic()
        self.guess: Guess | None = None
        self.guessed = False
        self.asked: list[int] = []
        self.next_ask_s = math.inf
        self.audited = self.over = False
        self._versions = versions_of(inputs)
        self.then: Callable[[Query], None] | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._answer: Answer | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it is answered, or has failed: whoever computes it may stop."""
        return self._answer is not None or self._error is not None

    @property
    def needless(self) -> bool:
        """Whether a pass for it may be left."""
        return self.done and not self.audited

    @property
    def answer(self) -> Answer | None:
        """The answer, if there is one."""
        return self._answer

    def fresh(self) -> bool:
        """Return whether the inputs are as they came; a model may write into them."""
        return versions_of(self.inputs) == self._versions

    def seconds(self) -> float:
        """Return the seconds since it came."""
        return time.monotonic() - self.begun_s

    def take(self, answer: Answer) -> bool:
        """Take an answer; returns False if another one was first."""
        return self._end(answer, None)

    def fail(self, error: BaseException) -> bool:
        """Take an error in place of an answer; returns False if an answer was first."""
        return self._end(None, error)

    def _end(self, answer: Answer | None, error: BaseException | None) -> bool:
        with self._lock:
            if self.done:
                return False
            self._answer, self._error = answer, error
        try:
            if self.then is not None:
                self.then(self)
        finally:
            self._done.set()
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is done; returns whether it is."""
        return self._done.wait(max(0.0, timeout_s))

    def outcome(self) -> Answer:
        """Return the answer of a query that is done.

        Raises:
            Exception: what the model has raised, or why there is no answer.
        """
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise CodedGradError(f"query {self.number} has no answer yet; wait for it")
        return self._answer


def versions_of(inputs: Any) -> list[int]:
    """Return the versions of the tensors of a nested value; -1 where there is none."""
    found = tensors_of(inputs)
    return [-1 if one.is_inference() else one._version for one in found]


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of a nested value, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in tensors_of(one)]
    return []
