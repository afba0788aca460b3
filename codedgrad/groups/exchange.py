"""The exchange among local groups, as each of a group's processes sees it.

The leader's exchanges; the others' follows what the leader decides and gets the sum by
a broadcast inside the group. Both are in the place of `engine.Exchange` in a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import MismatchError
from codedgrad.exchange.base import Arrival, RowBuffer
from codedgrad.exchange.engine import EngineExchange
from codedgrad.groups.membership import Board, LocalGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from codedgrad.codes import Code
    from codedgrad.row.layout import Payload


class LeadersExchange(EngineExchange):
    """The exchange among the groups, as a leader's members see it through him."""

    def __init__(
        self, group: LocalGroup, code: Code, payload: Payload, *how: Any, **more: Any
    ) -> None:
        """As `Exchange`, over the leaders. Collective over the job."""
        assert group.across is not None  # a leader's
        self._group = group
        self.board = Board(group)
        super().__init__(group.across, code, payload, *how, **more)

    def forwarded(self, step: int) -> bool:
        """Decides that for the whole group."""
        forwarded = self.done(step)
        self._group.tell([step, forwarded], f"to begin step {step}")
        return forwarded

    def done(self, step: int) -> bool:
        """As `Exchange.done`; the members see it from now on."""
        done = super().done(step)
        if done:
            self.board.raise_decoded(step)
        return done

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        """As `Exchange.take`; the members get the sum."""
        total, tail = super().take(step)
        self._group.broadcast(total, f"at the end of step {step}")
        return total, tail


class FollowersExchange(EngineExchange):
    """In the place of an exchange where a process takes no part in it."""

    def __init__(self, group: LocalGroup, payload: Payload) -> None:
        """Collective over the job, as the leaders'."""
        self._group = group
        self._payload = payload
        self.board = Board(group)
        scratch = empty_row(payload)
        self._scratch = RowBuffer(None, scratch, scratch)

    def row_of(self, worker: int, row: int) -> int:
        """No row is sent from here."""
        del worker, row
        return -1

    def row_buffer(self) -> RowBuffer:
        """The same one each time; what is written there goes nowhere."""
        return self._scratch

    def begin(self, step: int) -> float:
        """The leader waits, if it must, and we for him."""
        del step
        return 0.0

    def forwarded(self, step: int) -> bool:
        """What the leader has decided."""
        theirs, forwarded = self._group.tell([step, 0], f"to begin step {step}")
        if theirs != step:
            ranks = self._group.ranks
            raise MismatchError(
                f"worker {self._group.here.rank} begins step {step}, the leader of its "
                f"local group, worker {ranks[0]}, step {theirs}. Run the same script "
                f"with the same arguments on every worker."
            )
        return bool(forwarded)

    def post(self, step: int, row: int, data: RowBuffer) -> None:
        """The leader does."""

    def post_bucket(self, step: int, row: int, bucket: int, data: RowBuffer) -> None:
        """The leader does."""

    def done(self, step: int) -> bool:
        """True when the leader has seen that `step` is decoded."""
        return self.board.decoded >= step

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        """The decoded sum, from the leader, and its tail, on the CPU."""
        total = empty_row(self._payload)
        self._group.broadcast(total, f"at the end of step {step}")
        return total, total[self._payload.gradients :].cpu()

    def required_rows(self) -> list[list[int]]:
        """None that would be seen here."""
        return []

    def arrivals(self) -> Iterator[Arrival]:
        """None are seen here."""
        return iter(())

    def settled(self) -> list[Any]:
        """None here."""
        return []

    def counters(self) -> dict[str, float]:
        """What reports ask for: nothing is sent or decoded here."""
        return {"decode_s": 0.0, "slices_settled": 0.0}

    def close(self) -> None:
        """The leader's is closed by him."""


def open_exchange(
    group: LocalGroup, code: Code, payload: Payload, *how: Any, **more: Any
) -> LeadersExchange | FollowersExchange:
    """This process's side of the exchange among groups. Collective over the job."""
    if group.leads:
        return LeadersExchange(group, code, payload, *how, **more)
    return FollowersExchange(group, payload)


def empty_row(payload: Payload) -> Tensor:
    """Memory for one row, where the model is."""
    return torch.empty(payload.count, dtype=payload.dtype, device=payload.device)
