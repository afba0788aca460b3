"""Fractional repetition: the workers of a group all compute the same shards.

R. Tandon, Q. Lei, A. Dimakis, N. Karampatziakis, "Gradient Coding: Avoiding
Stragglers in Distributed Learning", ICML 2017, Algorithm 1.
"""

from __future__ import annotations

from codedgrad.codes.code import Code
from codedgrad.codes.rows import own_rows, positive
from codedgrad.codes.tree import SumTree
from codedgrad.errors import ConfigError


def fractional(workers: int, copies: int = 2, micro: int = 1) -> Code:
    """Build fractional repetition over groups of `copies` workers.

    Every worker of group q computes shards q * copies .. (q + 1) * copies - 1 and sends
    their sum. One row from each group decodes, so any copies - 1 stragglers are
    tolerated. The price is `copies` passes by every worker in every step.

    Args:
        workers: n, also the number of shards.
        copies: d = s + 1, size of a group; divides n.
        micro: micro-batches of a shard, which are sent as one row; with `same_bits`
            more need less memory.
    """
    positive(workers=workers, copies=copies, micro=micro)
    if workers % copies:
        divisors = [d for d in range(1, workers + 1) if workers % d == 0]
        raise ConfigError(
            f"copies={copies} does not divide {workers} workers into groups; "
            f"possible: {divisors}. codes.uncoded({workers}) has no copies, and waits "
            f"for everybody"
        )
    tree = SumTree.of_levels((micro, copies, workers // copies))
    span = copies * micro
    work = tuple(
        (tree.node(j // copies * span, (j // copies + 1) * span),)
        for j in range(workers)
    )
    return Code(
        name="fractional",
        parameters=(("copies", copies), ("micro", micro)),
        workers=workers,
        shards=workers,
        micro=micro,
        tree=tree,
        work=work,
        required=(1,) * workers,
        rows=own_rows(work),
    )
