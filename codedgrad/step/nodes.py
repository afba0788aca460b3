"""Nodes of a code's summation tree, as the passes of every step ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from codedgrad.codes import Code


class Node(NamedTuple):
    """One node.

    Attributes:
        left: the node below that is computed first; -1 for a leaf.
        right: the other one.
        span: the micro-batches below: the first, and one past the last.
        title: what it is in a step, for messages.
    """

    left: int
    right: int
    span: tuple[int, int]
    title: str


class Nodes:
    """The nodes that were asked for, each looked up in the tree once."""

    def __init__(self, code: Code) -> None:
        """Know none yet."""
        self._code = code
        self._known: dict[int, Node] = {}

    def at(self, node: int) -> Node:
        """Returns the node of this number."""
        found = self._known.get(node)
        if found is None:
            tree = self._code.tree
            span = int(tree.start[node]), int(tree.stop[node])
            left, right = int(tree.left[node]), int(tree.right[node])
            found = Node(left, right, span, _title_of(self._code, *span))
            self._known[node] = found
        return found


def place_of(code: Code, step: int, node: int) -> str:
    """Returns where in the training the pass of a node is, for messages."""
    span = int(code.tree.start[node]), int(code.tree.stop[node])
    return f"step {step}, {_title_of(code, *span)}"


def _title_of(code: Code, first: int, stop: int) -> str:
    shard, last = first // code.micro, (stop - 1) // code.micro
    if stop - first == 1:
        return f"shard {shard}, micro-batch {first % code.micro}"
    if last > shard:
        return f"shards {shard} to {last}"
    return f"shard {shard}"
