"""Spread repetition, the default: many workers help, with one micro-batch each."""

from __future__ import annotations

from codedgrad.codes.code import Code
from codedgrad.codes.rows import own_rows, positive
from codedgrad.codes.tree import SumTree

_PIECES = 4


def usual_pieces(workers: int) -> int:
    """Return the micro-batches of a shard that only helpers compute one by one.

    There are as many as helpers, so that none of them computes two for one late
    worker, and at most four. One helper so takes the whole shard. With more than four,
    each costs more for its share of a pass, and once two workers are late, most
    helpers compute two.
    """
    return max(1, min(_PIECES, workers - 1))


def spread(workers: int, micro: int = _PIECES, copies: int = 2) -> Code:
    """Build spread repetition: each micro-batch of a shard has `copies` back-ups.

    Worker j computes shard j. The back-up for copy c of its micro-batch i is worker
    (j + 1 + (c * micro + i) mod (n - 1)) mod n. The micro * copies back-ups of a shard
    are different workers as long as there are that many others, and two neighbours
    share few. In a worker's list all first copies stand before the second ones, so
    `micro` helpers finish a late shard in 1/micro of a pass.

    Args:
        workers: n, also the number of shards.
        micro: m, micro-batches of a shard.
        copies: r, back-ups of each micro-batch; at most n - 1 are used.
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
            # No worker may be the back-up of one micro-batch twice.
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
