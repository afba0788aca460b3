"""The synchronous baseline: no redundancy, so that every worker is waited for."""

from __future__ import annotations

from codedgrad.codes.code import Code
from codedgrad.codes.rows import own_rows, positive
from codedgrad.codes.tree import SumTree


def uncoded(workers: int, micro: int = 1) -> Code:
    """Build the code in which worker j computes shard j and sends it as one row.

    Args:
        workers: n, also the number of shards.
        micro: micro-batches of a shard, which are sent as one row; with `same_bits`
            more need less memory.
    """
    positive(workers=workers, micro=micro)
    tree = SumTree.of_levels((micro, workers))
    work = tuple((tree.node(j * micro, (j + 1) * micro),) for j in range(workers))
    return Code(
        name="uncoded",
        parameters=(("micro", micro),),
        workers=workers,
        shards=workers,
        micro=micro,
        tree=tree,
        work=work,
        required=(1,) * workers,
        rows=own_rows(work),
    )
