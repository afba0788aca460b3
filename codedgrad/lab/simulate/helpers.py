"""Policies in which idle workers help past their patience, event by event.

The rules are those of codedgrad's own steps (codedgrad/step). A worker computes its own
shard and sends one row. Then, each time after its patience, it takes the first item of
its list that has not arrived, and leaves it when somebody else's copy arrives. The step
is over when every shard is there, as its own row or as all of its pieces. A worker's
patience doubles, up to a pass, after a step in which all its help proved useless; it
shrinks after one in which any of it proved useful. The own pass is a whole one unless
it is cut into pieces, too (`same_bits=True`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from codedgrad import codes
from codedgrad.codes.whole import in_shards
from codedgrad.errors import ConfigError
from codedgrad.lab.simulate.lag import Lag, Late
from codedgrad.lab.simulate.outcome import Comm, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from codedgrad.lab.simulate.times import Times

    # From a play, when its step is covered, and the lag at its begin: when it is over.
    Settle = Callable[["Play", float, Lag], float]

_LONGEST = 1.0  # passes; this and the next are those of codedgrad/step/patience.py
_FORGET = 0.97
_REMEMBERED = 16  # a worker's usual time is the median of so many passes


@dataclass(frozen=True)
class Helping:
    """When an idle worker helps, and how far a late one may fall behind.

    Attributes:
        patience: median passes that a worker waits before it helps, 0 to 100.
        window: steps that a worker may be behind before the others wait for it.
    """

    patience: float = 0.1
    window: int = 16

    def __post_init__(self) -> None:
        """Check the patience."""
        if not 0.0 <= self.patience <= 100.0:
            raise ConfigError(f"patience is 0 to 100 passes, got {self.patience}")


@dataclass(frozen=True)
class Lists:
    """Which pieces of whose shards every worker may help with.

    Attributes:
        pieces: number of pieces of a shard; piece u belongs to shard u // pieces.
        backups: for each worker, the pieces that it may compute for others, in order.
        streams: True if a worker's own pieces arrive one by one, False if they arrive
            as one row at the end of its pass.
        own: time of a worker's own pass, over that of a whole one.
        each: time of a piece, over its share of a whole pass.
    """

    pieces: int
    backups: tuple[tuple[int, ...], ...]
    streams: bool = False
    own: float = 1.0
    each: float = 1.0

    def costing(self, piece_cost: float, *, same_bits: bool) -> Lists:
        """Return the lists with what it costs to cut a pass into pieces.

        Args:
            piece_cost: how much longer all pieces of a pass take than the whole one,
                per doubling of their number.
            same_bits: whether the own pass is made in pieces, too.
        """
        factor = 1.0 + piece_cost * float(np.log2(self.pieces))
        return replace(self, own=factor if same_bits else 1.0, each=factor)


def lists_of(code: codes.Code) -> Lists:
    """Return the lists of a code whose rows are single nodes (spread, scheduled)."""
    tree, micro = code.tree, code.micro
    whole = all(
        tree.stop[item] - tree.start[item] == micro
        for items in code.work
        for item in items
    )
    pieces = 1 if whole else micro
    size = micro // pieces
    backups = tuple(
        tuple(int(tree.start[item]) // size for item in items[required:])
        for items, required in zip(code.work, code.required, strict=True)
    )
    return Lists(pieces, backups)


def spread(
    times: Times,
    comm: Comm,
    *,
    micro: int = 0,
    copies: int = 2,
    patience: float = 0.1,
    window: int = 16,
    same_bits: int = 0,
    pieces: int = 1,
    piece_cost: float = 0.0,
) -> Outcome:
    """Play spread repetition, the default code.

    The times are those of a whole pass. With same_bits = 1 the own pass is made in
    pieces, and with pieces = 0 helpers take whole shards; see `Lists.costing` for
    piece_cost. With micro = 0 a shard has as many as `CodedGradient` makes of it.
    """
    n = times.shape[1]
    micro = micro or (4 if same_bits else codes.usual_pieces(n))
    code = codes.spread(n, micro=micro, copies=copies)
    lists = lists_of(code if pieces else in_shards(code))
    lists = lists.costing(piece_cost, same_bits=bool(same_bits))
    return simulate(times, comm, lists, Helping(patience, window))


def scheduled(
    times: Times,
    comm: Comm,
    *,
    copies: int = 2,
    order: str = "cyclic",
    patience: float = 0.1,
    window: int = 16,
) -> Outcome:
    """Play scheduled repetition: workers help with whole shards of their neighbours."""
    code = codes.scheduled(times.shape[1], copies=copies, order=order)
    return simulate(times, comm, lists_of(code), Helping(patience, window))


def partial(
    times: Times,
    comm: Comm,
    *,
    micro: int = 8,
    copies: int = 2,
    patience: float = 0.1,
    window: int = 16,
) -> Outcome:
    """Play a code in which a late worker's finished pieces count.

    Back-ups walk a shard from its other end, so that the two meet in the middle. The
    idea is that of A. Ramamoorthy, R. Meng, V. Girimaji, "Leveraging partial stragglers
    within gradient coding", 2024.
    """
    n = times.shape[1]
    copies = min(copies, n - 1)
    if micro < 1 or copies < 0:
        raise ConfigError(f"partial: micro={micro}, copies={copies} must be positive")
    backups = tuple(
        tuple(
            (w - offset) % n * micro + piece
            for offset in range(1, copies + 1)
            for piece in reversed(range(micro))
        )
        for w in range(n)
    )
    lists = Lists(micro, backups, streams=True)
    return simulate(times, comm, lists, Helping(patience, window))


def simulate(
    times: Times,
    comm: Comm,
    lists: Lists,
    helping: Helping,
    settle: Settle | None = None,
) -> Outcome:
    """Play every step; with `settle`, the owners may leave late workers out."""
    steps, n = times.shape
    patience = helping.patience
    hop = comm.hop_s(n) / times.median_s
    lag = (Lag if settle is None else Late)(n, helping.window)
    now = np.full(n, patience)
    longest = max(patience, _LONGEST)
    history = np.full((_REMEMBERED, n), np.nan)
    usual = np.ones(n)
    out, redundant = np.empty(steps), np.zeros(steps)
    helped_rows = 0
    for s in range(steps):
        held = lag.wait()
        pace = times.pace[s] * lists.own
        start = lag.begin(times.stall[s])
        now = patience + _FORGET * (now - patience)
        play = Play(lists, start, pace, now * usual, hop)
        over = covered = play.run()
        if settle is not None:
            over = settle(play, covered, lag)
        out[s] = held + over + hop
        redundant[s] = play.work(over) / n
        helped_rows += play.rows(over)
        for worker, useful in play.verdicts(over).items():
            if useful:
                now[worker] = max(patience, 0.7 * now[worker])
            else:
                now[worker] = min(longest, max(2.0 * now[worker], 0.05))
        # A pass that was cut short does not show how long a whole one takes.
        done = start + pace <= over
        history[s % _REMEMBERED] = np.where(done, start + pace, np.nan)
        if s < _REMEMBERED or s % 8 == 0:
            seen = ~np.isnan(history).all(axis=0)
            usual[seen] = np.nanmedian(history[:, seen], axis=0)
        left_out = pace if over < covered else None
        lag.end(times.stall[s], over + hop, left_out)
    return Outcome(out, redundant, 1.0 + helped_rows / (steps * n))


@dataclass
class _Help:
    """One piece that a worker computes for somebody else.

    Attributes:
        worker, piece: who computes what.
        began: when the worker began.
        left: when it is free again, because it is done or is not needed any more.
        whole: when the piece is done, or would have been.
    """

    worker: int
    piece: int
    began: float
    left: float
    whole: float


class Play:
    """The events of one step, with times counted from its begin.

    Lists are indexed by worker or by piece.
    """

    def __init__(
        self,
        lists: Lists,
        start: NDArray[np.float64],
        pace: NDArray[np.float64],
        patience: NDArray[np.float64],
        hop: float,
    ) -> None:
        self._lists, self._hop = lists, hop
        self._pace: list[float] = pace.tolist()
        self._patience: list[float] = patience.tolist()
        m = lists.pieces
        finish = start + pace
        self._first = finish + patience
        self._own: list[float] = (finish + hop).tolist()
        self._shard = finish + hop  # the moment at which each shard is at the owners
        if lists.streams:  # piece p is done after (p + 1) / m of the pass
            parts = start[:, None] + pace[:, None] * (np.arange(m) + 1.0) / m + hop
            self._piece: list[float] = parts.reshape(-1).tolist()
        else:
            self._piece = [float("inf")] * (len(pace) * m)
        self._helps: list[_Help] = []
        self._at: dict[int, list[_Help]] = {}  # by piece
        self._events: list[tuple[float, int, int]] = []
        self._version: dict[int, int] = {}
        self._place: dict[int, int] = {}

    def run(self) -> float:
        """Play the step; return when every shard is at the owners."""
        over = float(self._shard.max())
        for w in np.flatnonzero(self._first < over).tolist():
            self._push(w, float(self._first[w]))
        while self._events and self._events[0][0] < over:
            t, w, version = heapq.heappop(self._events)
            if version != self._version[w]:
                continue  # the worker was free earlier than planned
            piece = self._next(w, t)
            if piece >= 0:
                self._start(w, piece, t)
                over = float(self._shard.max())
        return over

    def arrivals(self) -> NDArray[np.float64]:
        """Return when each piece [shards * pieces] is at the owners.

        It arrives alone or as a part of its shard's row.
        """
        own = np.repeat(self._own, self._lists.pieces)
        return np.asarray(np.minimum(self._piece, own))

    def half(self) -> float:
        """Return when half of the shards are there."""
        count = (len(self._shard) + 1) // 2
        return float(np.partition(self._shard, count - 1)[count - 1])

    def work(self, over: float) -> float:
        """Return the passes that are done for others until the step is over."""
        return sum(
            max(0.0, min(h.left, over) - h.began) / self._pace[h.worker]
            for h in self._helps
        )

    def rows(self, over: float) -> int:
        """Return the number of rows that are sent for others."""
        return sum(h.whole <= min(h.left, over) for h in self._helps)

    def verdicts(self, over: float) -> dict[int, bool]:
        """Return for each worker that helped whether any of its help was useful.

        Help is useful if the own row of its shard came too late.
        """
        m = self._lists.pieces
        useful: dict[int, bool] = {}
        for h in self._helps:
            late = self._own[h.piece // m] > over
            useful[h.worker] = useful.get(h.worker, False) or late
        return useful

    def _push(self, w: int, t: float) -> None:
        self._version[w] = self._version.get(w, 0) + 1
        heapq.heappush(self._events, (t, w, self._version[w]))

    def _next(self, w: int, t: float) -> int:
        """Return the first piece of the worker's list that has not arrived, or -1."""
        todo, m = self._lists.backups[w], self._lists.pieces
        i = self._place.get(w, 0)
        while i < len(todo) and min(self._piece[todo[i]], self._own[todo[i] // m]) <= t:
            i += 1
        self._place[w] = i + 1
        return todo[i] if i < len(todo) else -1

    def _start(self, w: int, piece: int, t: float) -> None:
        m = self._lists.pieces
        shard = piece // m
        whole = t + self._pace[w] / m * self._lists.each / self._lists.own
        left = min(whole, self._piece[piece], self._own[shard])
        own = _Help(w, piece, t, left, whole)
        self._push(w, left + self._patience[w])
        arrival = whole + self._hop
        if arrival < self._piece[piece]:
            self._piece[piece] = arrival
            for other in self._at.get(piece, ()):
                if other.left > arrival:
                    other.left = arrival
                    self._push(other.worker, arrival + self._patience[other.worker])
            last = max(self._piece[shard * m : (shard + 1) * m])
            self._shard[shard] = min(self._own[shard], last)
        self._at.setdefault(piece, []).append(own)
        self._helps.append(own)
