"""The exchange among local groups, as each of a group's processes sees it.

Both classes implement `codedgrad.exchange.base.Exchange`, so a step does not know
which one it has. The leader's hands on to the exchange that it has with the other
leaders. The others' follows what the leader decides and gets the sum by a broadcast
inside the group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import MismatchError
from codedgrad.exchange.base import CLOSING, RowBuffer
from codedgrad.groups.board import Board

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from torch import Tensor

    from codedgrad.exchange.base import Arrival, Exchange, Settled
    from codedgrad.groups.membership import LocalGroup
    from codedgrad.row.layout import Layout


class LeadersExchange:
    """The exchange among the groups, which a leader's members see through the leader.

    Attributes:
        board: what the leader tells the members while they compute.
        outlives: False: where a process of a group dies, the job ends.
    """

    outlives = False

    def __init__(self, group: LocalGroup, exchange: Exchange) -> None:
        """Share `exchange`, which is among the leaders. Collective over the job."""
        self._group = group
        self._exchange = exchange
        self.board = Board(group)

    def forwarded(self, step: int) -> bool:
        """Decides for the whole group whether `step` is decoded already."""
        forwarded = self.done(step)
        self._group.tell([step, forwarded], f"to begin step {step}")
        return forwarded

    def done(self, step: int) -> bool:
        """Returns whether `step` is decoded; the members see it from now on."""
        done = self._exchange.done(step)
        if done:
            self.board.raise_decoded(step)
        return done

    def wait_all(
        self, step: int, help_out: Callable[[int], None] | None = None
    ) -> None:
        """Wait until `step` is decoded."""
        self._exchange.wait_all(step, help_out)

    def take(self, step: int) -> tuple[Tensor, NDArray[Any]]:
        """Returns the decoded sum and its tail; the members get the sum, too."""
        total, tail = self._exchange.take(step)
        self._group.broadcast(total, f"at the end of step {step}")
        return total, tail

    # ---- as among the leaders ----

    def row_of(self, worker: int, row: int) -> int:
        """Returns the engine's number of a row."""
        return self._exchange.row_of(worker, row)

    def row_buffer(self) -> RowBuffer:
        """Returns memory for one row."""
        return self._exchange.row_buffer()

    def begin(self, step: int) -> float:
        """Open `step`; returns the seconds waited for groups that lag."""
        return self._exchange.begin(step)

    def post(self, step: int, row: int, data: RowBuffer) -> None:
        """Send a row to the other groups."""
        self._exchange.post(step, row, data)

    def post_bucket(self, step: int, row: int, bucket: int, data: RowBuffer) -> None:
        """Send one bucket of a row to the other groups."""
        self._exchange.post_bucket(step, row, bucket, data)

    def past_half(self, step: int) -> bool:
        """Returns whether half of the batch has arrived here."""
        return self._exchange.past_half(step)

    def has(self, step: int, row: int) -> bool:
        """Returns whether `row` has arrived here or is implied by what has."""
        return self._exchange.has(step, row)

    def lost(self) -> list[int]:
        """Returns nobody."""
        return []

    def begun(self, step: int, row: int) -> bool:
        """Returns whether some bucket of `row` has arrived here."""
        return self._exchange.begun(step, row)

    def wait(self, step: int, timeout_s: float) -> bool:
        """Wait until `step` is decoded, at most `timeout_s`; False on time-out."""
        return self._exchange.wait(step, timeout_s)

    def required_rows(self) -> list[list[int]]:
        """Returns, by group, the rows that it sends in every step."""
        return self._exchange.required_rows()

    def arrivals(self) -> Iterable[Arrival]:
        """Yields what has arrived since the last call."""
        return self._exchange.arrivals()

    def settled(self) -> list[Settled]:
        """Returns new estimates."""
        return self._exchange.settled()

    def decoder_states(self) -> list[list[float]]:
        """Returns what the decoders of the own slices have learned."""
        return self._exchange.decoder_states()

    def restore_decoders(self, state: list[float]) -> None:
        """Let all decoders begin from `state`."""
        self._exchange.restore_decoders(state)

    def counters(self) -> dict[str, float]:
        """Returns totals since the start."""
        return self._exchange.counters()

    def close(self, why: str = CLOSING) -> None:
        """Free the session. Collective over the leaders."""
        self._exchange.close(why)


class FollowersExchange:
    """What stands in the place of an exchange where a process takes no part in it.

    Attributes:
        board: what the leader tells while this process computes.
        outlives: False, as at the leader.
    """

    outlives = False

    def __init__(self, group: LocalGroup, layout: Layout) -> None:
        """Follow the group's leader. Collective over the job."""
        self._group = group
        self._layout = layout
        self.board = Board(group)
        scratch = empty_row(layout)
        self._scratch = RowBuffer(None, scratch, scratch)

    def begin(self, step: int) -> float:
        """Do nothing: the leader waits if it must, and this process for the leader."""
        del step
        return 0.0

    def forwarded(self, step: int) -> bool:
        """Returns what the leader has decided.

        Raises:
            MismatchError: the leader begins another step.
        """
        theirs, forwarded = self._group.tell([step, 0], f"to begin step {step}")
        if theirs != step:
            ranks = self._group.ranks
            raise MismatchError(
                f"worker {self._group.job.rank} begins step {step}, the leader of its "
                f"local group, worker {ranks[0]}, step {theirs}. Run the same script "
                f"with the same arguments on every worker."
            )
        return bool(forwarded)

    def done(self, step: int) -> bool:
        """Returns whether the leader has seen that `step` is decoded."""
        return self.board.decoded >= step

    def take(self, step: int) -> tuple[Tensor, NDArray[Any]]:
        """Returns the decoded sum, from the leader, and its tail, on the CPU."""
        total = empty_row(self._layout)
        self._group.broadcast(total, f"at the end of step {step}")
        return total, total[self._layout.gradients :].cpu().numpy()

    # ---- what only the leader does ----

    def row_of(self, worker: int, row: int) -> int:
        """Returns -1: no row is sent from here."""
        del worker, row
        return -1

    def row_buffer(self) -> RowBuffer:
        """Returns the same buffer each time; what is written there goes nowhere."""
        return self._scratch

    def post(self, step: int, row: int, data: RowBuffer) -> None:
        """Do nothing: the leader sends the row."""

    def post_bucket(self, step: int, row: int, bucket: int, data: RowBuffer) -> None:
        """Do nothing: the leader sends the bucket."""

    def past_half(self, step: int) -> bool:
        """Returns False: no arrival is seen here."""
        del step
        return False

    def has(self, step: int, row: int) -> bool:
        """Returns False: no arrival is seen here."""
        del step, row
        return False

    def lost(self) -> list[int]:
        """Returns nobody."""
        return []

    def begun(self, step: int, row: int) -> bool:
        """Returns False: no arrival is seen here."""
        del step, row
        return False

    def wait(self, step: int, timeout_s: float) -> bool:
        """Returns at once whether the leader has seen that `step` is decoded."""
        del timeout_s
        return self.done(step)

    def wait_all(
        self, step: int, help_out: Callable[[int], None] | None = None
    ) -> None:
        """Do nothing: the leader waits, and tells the members in the help's rounds."""

    def required_rows(self) -> list[list[int]]:
        """Returns no rows: none would be seen here."""
        return []

    def arrivals(self) -> Iterable[Arrival]:
        """Yields nothing: no arrival is seen here."""
        return ()

    def settled(self) -> list[Settled]:
        """Returns no estimates: none is made here."""
        return []

    def decoder_states(self) -> list[list[float]]:
        """Returns no states: nothing is decoded here."""
        return []

    def restore_decoders(self, state: list[float]) -> None:
        """Do nothing: nothing is decoded here."""

    def counters(self) -> dict[str, float]:
        """Returns zeros for what reports ask: nothing is sent or decoded here."""
        return {"decode_s": 0.0, "slices_settled": 0.0, "slices_biased": 0.0}

    def close(self, why: str = CLOSING) -> None:
        """Do nothing: the leader closes the exchange."""


def empty_row(layout: Layout) -> Tensor:
    """Returns memory for one row, where the model is."""
    return torch.empty(layout.count, dtype=layout.dtype, device=layout.device)
