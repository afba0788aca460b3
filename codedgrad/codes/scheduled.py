"""Scheduled repetition: workers compute whole shards, each in an order of its own.

M. Mohammadi Amiri and D. Gunduz, "Computation Scheduling for Distributed Machine
Learning with Straggling Workers", IEEE Trans. Signal Processing, 2019.
"""

from __future__ import annotations

from codedgrad.codes.code import Code
from codedgrad.codes.rows import own_rows, positive
from codedgrad.codes.tree import SumTree
from codedgrad.errors import ConfigError

ORDERS = ("cyclic", "staircase")


def scheduled(
    workers: int, copies: int = 2, order: str = "cyclic", micro: int = 1
) -> Code:
    """Build scheduled repetition: a worker may compute `copies` shards, its own first.

    In the cyclic order worker j computes j, j + 1, j + 2, ... (mod n). In the staircase
    order even workers do that and odd workers compute j, j - 1, ..., so that neighbours
    help each other first. Each finished shard is a row of its own. Unlike in the paper,
    only the first shard is computed without waiting.

    Args:
        workers: n, also the number of shards.
        copies: r, workers that may compute a shard, its own included; at most n.
        order: "cyclic" or "staircase".
        micro: micro-batches of a shard, which are sent as one row; with `same_bits`
            more need less memory.
    """
    positive(workers=workers, copies=copies, micro=micro)
    if order not in ORDERS:
        raise ConfigError(f"order must be one of {ORDERS}, got {order!r}")
    if copies > workers:
        raise ConfigError(f"copies={copies} needs as many workers, got {workers}")
    tree = SumTree.of_levels((micro, workers))

    def item(worker: int, place: int) -> int:
        down = order == "staircase" and worker % 2 == 1
        shard = (worker + (-place if down else place)) % workers
        return tree.node(shard * micro, (shard + 1) * micro)

    work = tuple(tuple(item(j, i) for i in range(copies)) for j in range(workers))
    return Code(
        name="scheduled",
        parameters=(("copies", copies), ("order", order), ("micro", micro)),
        workers=workers,
        shards=workers,
        micro=micro,
        tree=tree,
        work=work,
        required=(1,) * workers,
        rows=own_rows(work),
    )
