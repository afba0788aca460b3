"""Computes passes, one at a time: a worker's own queries first, then others'.

They are computed in a thread of its own, so that whoever waits for an answer can take
another one meanwhile. A caller that wants nothing but the model's answer computes it
in its own thread, which saves the time of waking another one.

A pass that nobody needs any more is left at the next boundary between two modules. So
is one for another worker as soon as a query of one's own has come; it is taken up
again later, from its start.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from codedgrad.errors import ConfigError
from codedgrad.step.boundaries import Abandoned

if TYPE_CHECKING:
    from codedgrad.inference.serving.query import Query
    from codedgrad.inference.serving.served import Served
    from codedgrad.job.faults import Injector

log = logging.getLogger("codedgrad")


class Ask:
    """A query of another worker.

    Attributes:
        owner: the worker.
        number: of the query there.
        draws: see `Served.draws`.
        data: the inputs, as `codedgrad.job.objects` writes them.
        done: whether the owner has an answer.
    """

    def __init__(self, owner: int, number: int, draws: bool | None, data: bytes):
        """Begin a query that is not answered."""
        self.owner, self.number, self.draws, self.data = owner, number, draws, data
        self.done = False

    @property
    def needless(self) -> bool:
        """Whether a pass for it may be left."""
        return self.done


class Results(Protocol):
    """Takes what the hands have computed, in their thread."""

    def computed(self, query: Query, value: Any, seconds: float) -> None:
        """Called with the output for a query of one's own."""

    def helped(self, ask: Ask, value: Any, seconds: float) -> None:
        """Called with the output for another worker's query."""

    def not_helped(self, ask: Ask, text: str) -> None:
        """Called when there is none: why, or "" because it is not needed."""

    def inputs_of(self, ask: Ask) -> tuple[Any, ...]:
        """Return what the model is to be called with."""


class Hands:
    """Computes one pass at a time.

    Args:
        served: the model.
        results: takes what it returns.
        rank: of this worker.
        injector: makes it slow on purpose, or None.
    """

    def __init__(
        self, served: Served, results: Results, rank: int, injector: Injector | None
    ) -> None:
        self._served, self._results, self._rank = served, results, rank
        self.injector = injector
        self._there = threading.Condition()
        self._own: deque[Query] = deque()
        self._asks: deque[Ask] = deque()
        self._busy: Query | Ask | None = None
        self._stopped = False
        self._turn = threading.Lock()  # held while a pass is computed
        self._callers = 0  # that compute, or wait for their turn
        self._passes = 0
        self._usual_s = 0.0
        self.abandoned = 0  # passes that were left
        self._thread = threading.Thread(
            target=self._run, name="codedgrad-hands", daemon=True
        )

    def start(self) -> None:
        """Begin to compute what comes."""
        self._thread.start()

    @property
    def working(self) -> bool:
        """Whether what is added will be computed."""
        return self._thread.is_alive() and not self._stopped

    def end(self) -> None:
        """Begin no more passes, and leave the present one at its next boundary."""
        with self._there:
            self._stopped = True
            self._there.notify()

    def idle(self, timeout_s: float) -> bool:
        """Return whether no pass is under way; wait for that."""
        if not self._turn.acquire(timeout=timeout_s):
            return False
        self._turn.release()
        return True

    def stop(self, timeout_s: float) -> bool:
        """End after the present module; returns whether the thread has ended."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def add(self, query: Query) -> None:
        """Compute a query of this worker's own."""
        with self._there:
            self._own.append(query)
            self._there.notify()

    def drop(self, query: Query) -> None:
        """Forget a query of this worker's own that is not begun."""
        with self._there, contextlib.suppress(ValueError):
            self._own.remove(query)

    def compute_here(self, query: Query) -> None:
        """Compute a query of this worker's own in the thread of the caller."""
        with self._there:
            self._callers += 1
        try:
            with self._turn:
                self._compute(query)
        finally:
            with self._there:
                self._callers -= 1
                if self._callers == 0 and (self._own or self._asks):
                    self._there.notify()

    def help(self, ask: Ask) -> None:
        """Compute a query of another worker, when there is none of its own."""
        with self._there:
            self._asks.append(ask)
            self._there.notify()

    def forget(self, owner: int, number: int) -> None:
        """Hear that a query of another worker is answered."""
        with self._there:
            known = [*self._asks] + [self._busy] * isinstance(self._busy, Ask)
            for ask in known:
                if (ask.owner, ask.number) == (owner, number):  # type: ignore[union-attr]
                    ask.done = True  # type: ignore[union-attr, misc]

    def _next(self) -> Query | Ask | None:
        with self._there:
            self._busy = None
            while not self._stopped:
                if self._own:
                    self._busy = self._own.popleft()
                elif self._asks and self._callers == 0:
                    self._busy = self._asks.popleft()
                if self._busy is not None:
                    return self._busy
                self._there.wait()
        return None

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                with self._turn:
                    if isinstance(task, Ask):
                        self._help(task)
                    else:
                        self._compute(task)
            except Exception:  # of what takes the results; the next task is another
                log.exception("a pass for a query ended badly")

    def _compute(self, query: Query) -> None:
        if query.needless:
            query.over = True
            return
        begin = time.monotonic()
        try:
            _check_fresh(query)
            number = (self._rank, query.number)
            value = self._pass(query.inputs, query, number, self._served.draws)
            self._usual_s = time.monotonic() - begin
            self._results.computed(query, value, self._usual_s)
        except Abandoned:
            with self._there:
                self.abandoned += 1
        except BaseException as error:  # noqa: BLE001 (whoever waits for it gets it)
            query.fail(error)
        finally:
            query.over = True

    def _help(self, ask: Ask) -> None:
        if ask.done:
            self._results.not_helped(ask, "")
            return
        begin = time.monotonic()
        try:
            inputs = self._results.inputs_of(ask)
            value = self._pass(inputs, ask, (ask.owner, ask.number), ask.draws)
            self._results.helped(ask, value, time.monotonic() - begin)
        except Abandoned:
            with self._there:
                self.abandoned += 1
                again = not ask.done and not self._stopped
                if again:
                    self._asks.appendleft(ask)
            if not again:
                self._results.not_helped(ask, "")
        except BaseException as error:  # noqa: BLE001 (its owner computes it, too)
            self._results.not_helped(ask, _text(error))

    def _pass(
        self,
        inputs: tuple[Any, ...],
        task: Query | Ask,
        number: tuple[int, int],
        draws: bool | None,
    ) -> Any:
        if self.injector is not None:
            self.injector.begin(self._passes, self._usual_s)
        self._passes += 1
        return self._served.compute(inputs, _Watch(self, task), number, draws)

    def needless(self, task: Query | Ask) -> bool:
        """Return whether the pass for a task is to be left."""
        if task.needless or self._stopped:
            return True
        return isinstance(task, Ask) and bool(self._own or self._callers)


def _check_fresh(query: Query) -> None:
    if not query.fresh():
        raise ConfigError(
            "the inputs of a query were changed before it was computed; give submit() "
            "tensors that stay as they are"
        )


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 (its own text raises)
        return type(error).__name__


class _Watch:
    """Looks at every boundary whether a pass is still needed; a `Visitor`."""

    def __init__(self, hands: Hands, task: Query | Ask) -> None:
        self._hands, self._task = hands, task
        self._thread = threading.get_ident()

    def check(self) -> None:
        """Raises `Abandoned` where nobody needs the pass."""
        if self._hands.needless(self._task):
            raise Abandoned

    def visit(self) -> None:
        """At a boundary: be slow if told to, and look whether to go on."""
        if threading.get_ident() != self._thread:
            return  # the user calls the model, too
        self.check()
        if self._hands.injector is not None:
            self._hands.injector.boundary(self.check)
