"""Makes batches of queries that come within a short time, and hands answers back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from codedgrad.errors import CodedGradError, OverloadError
from codedgrad.inference.serving.second import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from codedgrad.inference.serving.predictor import CodedPredictor
    from codedgrad.inference.serving.query import Answer, Query

log = logging.getLogger("codedgrad")

_IN_FLIGHT = 8  # batches
_ROOM_S = 60.0  # that a batch waits for one of the predictor's places
_NAP_S = 1e-3


class Settings(NamedTuple):
    """How queries are gathered.

    Attributes:
        window_s: how long a batch waits for more queries, from its first one on.
        most: the most queries in a batch.
        queue: the most queries that are taken and not answered.
    """

    window_s: float = 0.002
    most: int = 32
    queue: int = 256


class _Waiting(NamedTuple):
    """A query that was taken: its input, and who hears its answer or its error."""

    row: Tensor
    hear: Callable[[Answer | BaseException], None]


class Batcher:
    """Gathers queries and has a predictor answer them, batch by batch.

    Queries of one shape and type share a batch. What was taken is answered, or told
    what went wrong.
    """

    def __init__(self, predictor: CodedPredictor, settings: Settings) -> None:
        """Begin to gather."""
        self._predictor, self._settings = predictor, settings
        self._there = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._under_way = 0  # taken and not answered
        self._free = threading.Semaphore(_IN_FLIGHT)
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, "codedgrad-answers")
        self._stopped = False
        self.refused = 0
        self._thread = threading.Thread(
            target=self._run, name="codedgrad-batcher", daemon=True
        )
        self._thread.start()

    @property
    def most(self) -> int:
        """The most queries that are taken and not answered."""
        return self._settings.queue

    @property
    def under_way(self) -> int:
        """How many queries were taken and are not answered."""
        return self._under_way

    def put(
        self,
        rows: Sequence[Tensor],
        hear: Callable[[int, Answer | BaseException], None],
    ) -> None:
        """Take all of these queries, or none.

        Args:
            rows: one tensor for each query.
            hear: called in another thread with the number of each and its answer,
                or its error.

        Raises:
            OverloadError: there is no room for them.
            CodedGradError: the end has begun.
        """
        most = self._settings.queue
        with self._there:
            if self._stopped:
                raise CodedGradError("the server ends and takes no more queries")
            if self._under_way + len(rows) > most:
                self.refused += len(rows)
                raise OverloadError(
                    f"{self._under_way} queries are under way, and {len(rows)} more "
                    f"would be over {most}, the most that this worker takes; ask again "
                    f"later"
                )
            self._under_way += len(rows)
            for i, row in enumerate(rows):
                self._queue.append(_Waiting(row, self._once(hear, i)))
            self._there.notify()

    def _once(
        self, hear: Callable[[int, Answer | BaseException], None], number: int
    ) -> Callable[[Answer | BaseException], None]:
        def told(outcome: Answer | BaseException) -> None:
            with self._there:
                self._under_way -= 1
            hear(number, outcome)

        return told

    def stop(self) -> None:
        """Answer what was taken, and end."""
        with self._there:
            self._stopped = True
            self._there.notify()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        while (batch := self._gather()) is not None:
            groups: dict[Any, list[_Waiting]] = {}
            for one in batch:
                groups.setdefault((one.row.shape, one.row.dtype), []).append(one)
            for group in groups.values():
                self._free.acquire()  # more queries gather meanwhile
                self._pool.submit(self._answer, group)

    def _gather(self) -> list[_Waiting] | None:
        """Return the queries of the next batch; None at the end."""
        window_s, most = self._settings.window_s, self._settings.most
        with self._there:
            while not self._queue:
                if self._stopped:
                    return None
                self._there.wait()
            until = time.monotonic() + window_s
            while len(self._queue) < most and not self._stopped:
                left = until - time.monotonic()
                if left <= 0.0:
                    break
                self._there.wait(left)
            return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    def _answer(self, group: list[_Waiting]) -> None:
        try:
            left = self._together(group)
            for one in left:  # what is wrong with one query is not the others' error
                self._together([one])
        finally:
            self._free.release()

    def _together(self, group: list[_Waiting]) -> list[_Waiting]:
        """Answer some queries as one batch; returns those that have to be alone."""
        told: set[int] = set()
        try:
            batch = torch.stack([one.row for one in group])
            for rows, answer in self._predictor.parts(self._submit(batch)):
                for place, number in enumerate(rows.tolist()):
                    found = _of_row(answer, place, len(rows))
                    told.add(number)
                    _tell(group[number], found)
        except BaseException as error:  # noqa: BLE001 (its client gets it)
            left = [one for i, one in enumerate(group) if i not in told]
            if len(group) > 1:
                return left
            for one in left:
                _tell(one, error)
        return []

    def _submit(self, batch: Tensor) -> Query:
        """Submit what was taken; wait while others have the predictor's places."""
        until = time.monotonic() + _ROOM_S
        while True:
            try:
                return self._predictor.submit(batch)
            except OverloadError:
                if time.monotonic() > until:
                    raise
            time.sleep(_NAP_S)


def _tell(one: _Waiting, outcome: Answer | BaseException) -> None:
    try:
        one.hear(outcome)
    except Exception:  # of one client; the others are told theirs
        log.exception("an answer could not be handed back")


def _of_row(answer: Answer, place: int, rows: int) -> Answer:
    """Return the answer of one query of a batch."""
    if rows == 1:  # all of it is this one's
        return answer
    row = torch.tensor([place])
    value = rows_of(answer.value, row, rows)
    return answer._replace(value=value, doubt=answer.doubt[row])
