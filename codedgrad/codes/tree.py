"""The summation tree: the one order in which a step's micro-batches are added.

A row is a node of the tree. A node that arrives therefore stands for its whole subtree
with the same bits, and the decoded sum does not depend on which nodes arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class SumTree:
    """A binary tree over parts 0 .. parts-1; nodes 0 .. parts-1 are its leaves.

    Attributes:
        left: int32 [nodes], the left child or -1.
        right: int32 [nodes], the right child or -1.
        parent: int32 [nodes], the parent; -1 for the root.
        start: int32 [nodes], the first part that the node covers.
        stop: int32 [nodes], one past the last part that it covers.
        root: the node that covers all parts.
    """

    def __init__(self, left: list[int], right: list[int], parts: int) -> None:
        """Take the children of every node, leaves first; `of_levels` makes them."""
        self.parts = parts
        self.left = np.asarray(left, np.int32)
        self.right = np.asarray(right, np.int32)
        self.parent = np.full(len(left), -1, np.int32)
        self.start = np.arange(len(left), dtype=np.int32)
        self.stop = self.start + 1
        for node in range(parts, len(left)):
            a, b = left[node], right[node]
            self.parent[a] = self.parent[b] = node
            self.start[node], self.stop[node] = self.start[a], self.stop[b]
        self.root = len(left) - 1
        self._nodes = {
            (int(a), int(b)): i
            for i, (a, b) in enumerate(zip(self.start, self.stop, strict=True))
        }

    @classmethod
    def of_levels(cls, levels: tuple[int, ...]) -> SumTree:
        """Build a tree of nested groups, innermost level first, e.g. (micro, shards).

        At each level, runs of `level` neighbours are joined by
        join(lo, hi) = join(lo, mid) + join(mid, hi), where mid - lo is the largest
        power of two below hi - lo. If all levels are powers of two, the tree depends on
        their product alone.

        Raises:
            ConfigError: a level is below 1.
        """
        if not levels or any(level < 1 for level in levels):
            raise ConfigError(f"tree levels must be positive, got {levels}")
        parts = int(np.prod(levels))
        left, right = [-1] * parts, [-1] * parts
        nodes = list(range(parts))

        def join(group: list[int]) -> int:
            if len(group) == 1:
                return group[0]
            mid = 1 << ((len(group) - 1).bit_length() - 1)
            a, b = join(group[:mid]), join(group[mid:])
            left.append(a)
            right.append(b)
            return len(left) - 1

        for level in levels:
            nodes = [join(nodes[i : i + level]) for i in range(0, len(nodes), level)]
        return cls(left, right, parts)

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.left)

    def node(self, start: int, stop: int) -> int:
        """Return the node that covers exactly the parts [start, stop).

        Raises:
            ConfigError: there is no such node.
        """
        try:
            return self._nodes[start, stop]
        except KeyError:
            raise ConfigError(
                f"no node of the summation tree covers parts {start} to {stop - 1}"
            ) from None

    def satisfied(self, arrived: Iterable[int]) -> NDArray[np.bool_]:
        """Return bool [nodes]: the node has arrived, or both its children are true."""
        known = np.zeros(len(self), bool)
        known[list(arrived)] = True
        for node in range(self.parts, len(self)):
            if known[self.left[node]] and known[self.right[node]]:
                known[node] = True
        return known

    def sum(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Sum `values` [parts, ...] in the tree's order; this is the slow reference."""
        partial = list(values)
        for node in range(self.parts, len(self)):
            partial.append(partial[self.left[node]] + partial[self.right[node]])
        return np.asarray(partial[self.root])
