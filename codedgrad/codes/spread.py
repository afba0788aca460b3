"""Spread repetition, the default: many helpers, a micro-batch each."""

from __future__ import annotations

from codedgrad.codes.code import Code
from codedgrad.codes.rows import own_rows, positive
from codedgrad.codes.tree import SumTree


def spread(workers: int, micro: int = 4, copies: int = 2) -> Code:
    """Worker j computes shard j; each of its micro-batches has `copies` back-ups.

    The back-up of copy c of micro-batch i is worker (j + 1 + (c * micro + i) mod
    (n - 1)) mod n: the micro * copies back-ups of a shard are different workers while
    there are that many others, and two neighbours share few. All first copies stand
    before the second ones in a worker's list, so a late shard is finished by `micro`
    helpers in 1/micro of a pass.

    Args:
        workers: n, also the number of shards.
        micro: m, micro-batches of a shard.
        copies: r, back-ups of each micro-batch (at most n - 1 are used).
    """
    positive(workers=workers, micro=micro, copies=copies)
    copies = min(copies, workers - 1)
    tree = SumTree.of_levels((micro, workers))
    lists: list[list[int]] = [
        [tree.node(j * micro, (j + 1) * micro)] for j in range(workers)
    ]
    taken: list[set[int]] = [set() for _ in range(micro)]
    for c in range(copies):
        for i in range(micro):
            offset = 1 + (c * micro + i) % (workers - 1)
            # Copies of one micro-batch must not meet in one worker.
            while offset in taken[i]:
                offset = 1 + offset % (workers - 1)
            taken[i].add(offset)
            for j in range(workers):
                lists[(j + offset) % workers].append(j * micro + i)
    work = tuple(tuple(items) for items in lists)
    return Code(
        name="spread",
        parameters=(("micro", micro), ("copies", copies)),
        workers=workers,
        shards=workers,
        micro=micro,
        tree=tree,
        work=work,
        required=(1,) * workers,
        rows=own_rows(work),
    )
