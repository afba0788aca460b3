"""What an idle worker helps with, against a list of what has arrived."""

from __future__ import annotations

import pytest

from codedgrad import codes
from codedgrad.codes import dealing
from codedgrad.codes.whole import in_shards
from codedgrad.step.helping import Helping
from codedgrad.step.items import WorkList


class Arrivals:
    """Stands for the exchange: which nodes are here, which are on their way."""

    def __init__(self) -> None:
        self.here: set[int] = set()
        self.coming: set[int] = set()
        self.waits: list[float] = []
        self.over = False
        self.out: list[int] = []

    def lost(self) -> list[int]:
        return self.out

    def done(self, _step: int) -> bool:
        return self.over

    def wait(self, _step: int, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        return self.over

    def has(self, _step: int, node: int) -> bool:
        return node in self.here

    def row_of(self, _worker: int, row: int) -> int:
        return row

    def begun(self, _step: int, node: int) -> bool:
        return node in self.here | self.coming


CODE = codes.spread(5, micro=4)
OWN = CODE.required[0]
NODES = CODE.work[0]
LIST = list(range(OWN, len(NODES)))


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


@pytest.fixture
def helping(arrivals: Arrivals) -> Helping:
    return Helping(arrivals, WorkList(CODE, 0, arrivals, overlap=True), 7)  # type: ignore[arg-type]


def test_nothing_once_decoded(arrivals: Arrivals, helping: Helping) -> None:
    arrivals.over = True
    assert helping.next_items(0.1, 1.0) == []
    assert arrivals.waits == [0.1]


def test_what_is_missing_in_the_order_of_the_list(
    arrivals: Arrivals, helping: Helping
) -> None:
    arrivals.here = {NODES[LIST[1]]}
    assert helping.next_items(0.1, 1.0) == [LIST[0], *LIST[2:]]
    helping.take([LIST[0]])
    assert helping.next_items(0.1, 1.0) == LIST[2:]
    assert arrivals.waits == [0.1, 0.1]


def test_what_is_on_its_way_comes_last(arrivals: Arrivals, helping: Helping) -> None:
    arrivals.coming = {NODES[LIST[0]]}
    assert helping.next_items(0.1, 1.0) == [*LIST[1:], LIST[0]]
    assert arrivals.waits == [0.1]


def test_where_all_is_on_its_way_it_waits_for_a_micro_batch(
    arrivals: Arrivals, helping: Helping
) -> None:
    arrivals.coming = {NODES[i] for i in LIST}
    assert helping.next_items(0.1, 2.0) == LIST
    # A micro-batch is a quarter of the worker's own two seconds.
    assert arrivals.waits == [0.1, 0.5]


def test_the_end_of_the_list(arrivals: Arrivals, helping: Helping) -> None:
    helping.take(LIST)
    assert helping.next_items(0.1, 1.0) == []


def test_the_last_resort_is_all_that_the_code_does_not_list(
    arrivals: Arrivals, helping: Helping
) -> None:
    helping.take(LIST)
    assert helping.next_items(0.0, 1.0) == []
    helping.last_resort()
    helping.last_resort()
    work = WorkList(CODE, 0, arrivals, overlap=True)  # type: ignore[arg-type]
    beyond = [work.nodes[i] for i in helping.next_items(0.0, 1.0)]
    own = range(CODE.micro)  # of worker 0; its whole row stands for them
    assert sorted([*beyond, *(NODES[i] for i in LIST)]) == list(range(CODE.parts))
    assert set(own) <= set(beyond)


@pytest.mark.parametrize("copies", [2, 3])
def test_the_last_resort_of_whole_shards_is_whole_shards(copies: int) -> None:
    """A part of what is computed as a whole elsewhere would have other bits."""
    code = in_shards(codes.spread(5, micro=4, copies=copies))
    tree = code.tree
    for worker in range(5):
        work = WorkList(code, worker, Arrivals(), overlap=True)  # type: ignore[arg-type]
        spans = [(int(tree.start[node]), int(tree.stop[node])) for node in work.nodes]
        assert sorted(spans) == [(4 * s, 4 * s + 4) for s in range(5)]
        assert [row for rows in work.rows[work.listed :] for row in rows] == [
            (node, None) for node in work.nodes[work.listed :]
        ]


def test_what_is_dealt_of_a_lost_worker_comes_first_and_at_once(
    arrivals: Arrivals, helping: Helping
) -> None:
    arrivals.out = [2]
    mine = dealing.dealt(CODE, [2])[0]
    found = helping.next_items(0.1, 1.0)
    assert (
        sorted(WorkList(CODE, 0, arrivals, overlap=True).nodes[i] for i in found)
        == mine
    )  # type: ignore[arg-type]
    assert arrivals.waits == []
    helping.take(found)
    helping.next_items(0.1, 1.0)
    assert arrivals.waits == [0.1]  # now as usual


def test_what_is_dealt_and_here_is_not_computed(
    arrivals: Arrivals, helping: Helping
) -> None:
    arrivals.out = [2]
    arrivals.here = set(range(CODE.parts))
    assert helping.next_items(0.1, 1.0) == []
    arrivals.here = set()
    arrivals.over = True
    assert helping.next_items(0.1, 1.0) == []


@pytest.mark.parametrize("lost", [[3], [0, 2], [4, 1]])
@pytest.mark.parametrize("copies", [2, 3])
def test_lost_workers_whole_shards_are_dealt_once_each(
    lost: list[int], copies: int
) -> None:
    """Where helpers take whole shards, one worker takes each, and none waits for it."""
    code = in_shards(codes.spread(5, micro=4, copies=copies))
    taken: list[int] = []
    for worker in sorted(set(range(5)) - set(lost)):
        arrivals = Arrivals()
        arrivals.out = lost
        arrivals.here = {n for w in range(5) if w not in lost for n in code.work[w][:1]}
        work = WorkList(code, worker, arrivals, overlap=True)  # type: ignore[arg-type]
        items = Helping(arrivals, work, 7).next_items(0.1, 1.0)  # type: ignore[arg-type]
        mine = [work.nodes[i] for i in items if not arrivals.waits]
        taken += [int(code.tree.start[node]) // 4 for node in mine]
    assert sorted(taken) == sorted(lost)
