"""No redundancy: every worker is waited for. The synchronous baseline."""

from __future__ import annotations

from codedgrad.codes.code import Code
from codedgrad.codes.rows import own_rows, positive
from codedgrad.codes.tree import SumTree


def uncoded(workers: int, micro: int = 1) -> Code:
    """Worker j computes shard j, as `micro` micro-batches, and sends one row."""
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
