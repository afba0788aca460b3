"""Cyclic repetition: a worker sends one message for s + 1 shards; any n - s decode.

R. Tandon, Q. Lei, A. Dimakis, N. Karampatziakis, "Gradient Coding: Avoiding
Stragglers in Distributed Learning", ICML 2017, Algorithm 2.
"""

from __future__ import annotations

import numpy as np

from codedgrad.codes.code import Code, Row
from codedgrad.codes.rows import positive
from codedgrad.codes.tree import SumTree
from codedgrad.errors import ConfigError


def cyclic(workers: int, stragglers: int = 1, seed: int = 0) -> Code:
    """Build the cyclic code: worker j sends sum_i B[j, i] g_i over s + 1 shards.

    Worker j computes shards j .. j + s (mod n), the support of its row of B. The rows
    lie in the null space of a random H [s, n] whose columns sum to zero, so that the
    all-ones vector lies in the span of any n - s rows. Decoding is exact to rounding,
    not to the bit, and is conditioned worse for larger s.

    Args:
        workers: n, also the number of shards.
        stragglers: s, the number of lost workers that it tolerates; below n.
        seed: seed of H.
    """
    positive(workers=workers)
    if isinstance(stragglers, bool) or not 0 <= stragglers < workers:
        raise ConfigError(
            f"stragglers must be 0 to {workers - 1} for {workers} workers, got "
            f"{stragglers}"
        )
    tree = SumTree.of_levels((workers,))
    s = stragglers
    h = np.random.default_rng(seed).standard_normal((s, workers))
    h[:, -1] = -h[:, :-1].sum(axis=1)
    work, rows = [], []
    for j in range(workers):
        support = [(j + i) % workers for i in range(s + 1)]
        rest = -np.linalg.solve(h[:, support[1:]], h[:, j]) if s else np.zeros(0)
        work.append(tuple(support))
        coefficients = (1.0, *(float(c) for c in rest))
        rows.append((Row(s, tuple(range(s + 1)), coefficients),))
    return Code(
        name="cyclic",
        parameters=(("stragglers", s), ("seed", seed)),
        workers=workers,
        shards=workers,
        micro=1,
        tree=tree,
        work=tuple(work),
        required=(s + 1,) * workers,
        rows=tuple(rows),
        linear=True,
        stragglers=s,
    )
