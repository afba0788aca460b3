"""Which batches are added in which order, and who computes which of them.

The batches 0 .. B-1 of an evaluation are halved again and again,

    sum(first, stop) = sum(first, middle) + sum(middle, stop),
    middle = first + ceil((stop - first) / 2),

until one batch is left. This order of additions depends on the number of batches alone,
so the sum has the same bits whoever computes what, and at any number of workers. The
upper levels of these halves are a binary tree with a power of two of leaves, in which
the engine decodes. A *part* is a node of it: a leaf, or a node above that holds a
single batch. Parts are what workers compute and help with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from codedgrad.codes import Code
    from codedgrad.codes.tree import SumTree

_EACH = 16  # parts of a worker; so late work is divided in pieces of 6 % of a share
_MOST = 4096  # parts of all workers, if there are not more workers


class Part(NamedTuple):
    """Some batches in a row, whose sum is one row.

    Attributes:
        node: the node of the tree of which they are the batches.
        first: the first batch.
        stop: one past the last batch.
    """

    node: int
    first: int
    stop: int


def leaves_for(workers: int) -> int:
    """Returns how many leaves the tree has: a power of two."""
    wanted = max(workers, min(_EACH * workers, _MOST))
    return 1 << (wanted - 1).bit_length()


def middle_of(first: int, stop: int) -> int:
    """Returns where a run of batches is halved."""
    return first + (stop - first + 1) // 2


def cut(tree: SumTree, batches: int) -> list[Part]:
    """Returns the parts of an evaluation, in the order of their batches."""
    parts: list[Part] = []

    def split(leaves: tuple[int, int], first: int, stop: int) -> None:
        begin, end = leaves
        if stop - first == 1 or end - begin == 1:
            parts.append(Part(tree.node(begin, end), first, stop))
            return
        half, middle = (begin + end) // 2, middle_of(first, stop)
        split((begin, half), first, middle)
        split((half, end), middle, stop)

    split((0, tree.parts), 0, batches)
    return parts


class Shares:
    """Says whose parts are whose: what each worker computes, and what it helps with.

    Attributes:
        parts: all of them.
        owners: of each part, the workers that compute it without waiting; the first
            one is who is late if it does not come.
        own: the numbers of this worker's parts, in the order in which it computes them.
        others: the numbers of the parts that it may help with.
    """

    def __init__(
        self, parts: Sequence[Part], worker: int, workers: int, code: Code | None
    ) -> None:
        """Divide the parts.

        Args:
            parts: from `cut`.
            worker: this one.
            workers: the number of them.
            code: whose shards are runs of batches; None gives each worker one shard,
                and lets all help with all.
        """
        self.parts = parts
        batches = parts[-1].stop
        shards = workers if code is None else code.shards
        owning = [{w} for w in range(workers)] if code is None else _owning(code)
        helping = set(range(shards)) if code is None else _shards(code, worker, None)
        shard_of = [part.first * shards // batches for part in parts]
        self.owners = [
            [w for w in range(workers) if shard in owning[w]] for shard in shard_of
        ]
        numbers = range(len(parts))
        self.own = [i for i in numbers if shard_of[i] in owning[worker]]
        self.others = [
            i
            for i in numbers
            if shard_of[i] in helping and shard_of[i] not in owning[worker]
        ]

    def late(self, has: Callable[[int], bool]) -> list[int]:
        """Returns the workers whose parts are missing.

        Args:
            has: whether the row of a node has arrived.
        """
        missing = (
            owners[0]
            for part, owners in zip(self.parts, self.owners, strict=True)
            if not has(part.node)
        )
        return sorted(set(missing))


def check_code(code: Code | None, workers: int) -> None:
    """Refuses codes by which an evaluation cannot be divided.

    Raises:
        ConfigError: it is for other workers, or its rows are general combinations.
    """
    if code is None:
        return
    if code.workers != workers:
        raise ConfigError(
            f"{code.describe()} is for {code.workers} workers, and the job has "
            f"{workers}; make it with codedgrad.size()"
        )
    if code.linear:
        raise ConfigError(
            f"{code.describe()} sends combinations that are right up to rounding, and "
            f"sums of metrics are exact: use a code whose rows are plain sums, or None"
        )


def _shards(code: Code, worker: int, items: int | None) -> set[int]:
    """Returns the shards of a worker's first items; None takes all of its list."""
    found: set[int] = set()
    for node in code.work[worker][:items]:
        first, last = int(code.tree.start[node]), int(code.tree.stop[node]) - 1
        found.update(range(first // code.micro, last // code.micro + 1))
    return found


def _owning(code: Code) -> list[set[int]]:
    return [_shards(code, w, code.required[w]) for w in range(code.workers)]
