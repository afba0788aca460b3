"""Help with whole shards, for models whose micro-batches are another function.

Batch norm in training, or a loss that compares the samples of a batch, gives another
result for a part of a shard than for the shard. A code whose helpers take single
micro-batches is then replaced by one whose helpers take shards.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from codedgrad.codes.rows import own_rows

if TYPE_CHECKING:
    from codedgrad.codes.code import Code


def in_shards(code: Code) -> Code:
    """Return the code with redundant items that are whole shards, or larger.

    A worker that may compute the first micro-batch of a shard may compute the shard
    instead; what else it could compute of the shard is left out. So a shard has as many
    back-ups as its first micro-batch had, and `tolerance` does not fall. Own items stay
    as they are. A code whose items are whole shards already comes back unchanged.
    """
    if not helps_in_pieces(code):
        return code
    tree, micro = code.tree, code.micro
    work = []
    for items, required in zip(code.work, code.required, strict=True):
        kept = []
        for node in items[required:]:
            start, stop = int(tree.start[node]), int(tree.stop[node])
            if stop - start >= micro:
                kept.append(node)
            elif start % micro == 0:
                kept.append(tree.node(start, start + micro))
        work.append((*items[:required], *dict.fromkeys(kept)))
    return replace(
        code,
        parameters=(*code.parameters, ("help", "shards")),
        work=tuple(work),
        rows=own_rows(work),
        _cache=OrderedDict(),
    )


def helps_in_pieces(code: Code) -> bool:
    """Return whether some redundant item is smaller than a shard."""
    tree = code.tree
    return any(
        tree.stop[node] - tree.start[node] < code.micro
        for items, required in zip(code.work, code.required, strict=True)
        for node in items[required:]
    )
