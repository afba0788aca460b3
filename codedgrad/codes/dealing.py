"""Who computes the micro-batches of workers that are lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from codedgrad.codes.code import Code


def dealt(code: Code, lost: Collection[int]) -> dict[int, list[int]]:
    """Return the micro-batches that each worker that is left computes for the lost.

    It depends on its arguments alone, so workers that know of the same losses divide
    the work without a word. Each micro-batch goes to whoever has the least to do; among
    these to one that has it on its list, and then to the next after the lost one.

    Args:
        code: who computes what when nobody is lost.
        lost: workers that are lost; at least one is left.
    """
    n, tree = code.workers, code.tree

    def leaves(worker: int) -> list[int]:
        nodes = code.work[worker][: code.required[worker]]
        return [g for node in nodes for g in range(tree.start[node], tree.stop[node])]

    left = [w for w in range(n) if w not in lost]
    listed = [set(code.work[w]) for w in range(n)]
    load = {w: len(leaves(w)) for w in left}
    done = {g for w in left for g in leaves(w)}
    found: dict[int, list[int]] = {w: [] for w in left}
    for worker in sorted(lost):
        for leaf in leaves(worker):
            if leaf in done:
                continue
            done.add(leaf)
            taker = min(
                left, key=lambda w: (load[w], leaf not in listed[w], (w - worker) % n)
            )
            load[taker] += 1
            found[taker].append(int(leaf))
    return found
