"""What a worker does that is late in an approximate step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codedgrad import codes
from codedgrad.step.late import LatePass

CODE = codes.spread(2, micro=4)
WINDOW = 16


class Ahead:
    """An exchange that has decoded some steps, and notes what is posted."""

    def __init__(self, decoded: int, *, half: bool) -> None:
        self.decoded = decoded
        self.half = half
        self.posted: list[tuple[int, int, float]] = []

    def done(self, step: int) -> bool:
        return self.decoded >= step

    def past_half(self, step: int) -> bool:
        return self.half and step == self.decoded + 1

    def row_buffer(self) -> Any:
        return SimpleNamespace(tensor=torch.zeros(1))

    def post(self, step: int, row: int, data: Any) -> None:
        self.posted.append((step, row, float(data.tensor)))


def needless(late: LatePass, decoded: int, step: int) -> bool:
    return late.needless(Ahead(decoded, half=False), step)  # type: ignore[arg-type]


@pytest.mark.parametrize("active", [True, False])
def test_a_pass_is_needed_until_its_step_is_decoded(active: bool) -> None:
    late = LatePass(CODE, WINDOW, active=active)
    assert not needless(late, decoded=4, step=5)
    assert needless(late, decoded=5, step=5)


def test_a_worker_that_is_late_again_goes_on_for_three_quarters_of_a_window() -> None:
    late = LatePass(CODE, WINDOW, active=True)
    late.over(abandoned=True)
    assert not needless(late, decoded=5, step=5)
    assert not needless(late, decoded=16, step=5)
    assert needless(late, decoded=17, step=5)
    late.over(abandoned=False)  # finished late: now it is to catch up
    assert needless(late, decoded=5, step=5)


def test_in_exact_steps_nobody_goes_on() -> None:
    late = LatePass(CODE, WINDOW, active=False)
    late.over(abandoned=True)
    assert needless(late, decoded=5, step=5)


def offered(exchange: Ahead, late: LatePass, nodes: list[int]) -> None:
    context: Any = SimpleNamespace(exchange=exchange, step=exchange.decoded + 1)
    for node in nodes:
        late.offer(context, node, torch.tensor([float(node)]))


def test_what_is_done_is_sent_once_half_of_the_batch_is_there() -> None:
    tree, late = CODE.tree, LatePass(CODE, WINDOW, active=True)
    exchange = Ahead(3, half=False)
    pair = int(tree.parent[0])
    offered(exchange, late, [0, 1, pair, 2])
    assert exchange.posted == []
    exchange.half = True
    offered(exchange, late, [3])
    # Micro-batches 0 and 1 are part of the pair, so they go by their sum alone.
    assert exchange.posted == [(4, node, float(node)) for node in (pair, 2, 3)]
    offered(exchange, late, [int(tree.parent[2])])
    assert exchange.posted[3:] == [(4, int(tree.parent[2]), float(tree.parent[2]))]


def test_nothing_is_sent_in_exact_steps() -> None:
    exchange, late = Ahead(3, half=True), LatePass(CODE, WINDOW, active=False)
    offered(exchange, late, [0, 1])
    assert exchange.posted == []
