"""The code of a job with local groups, and how a group divides an item of work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedgrad import codes
from codedgrad.data import even
from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.codes.tree import SumTree
    from codedgrad.groups.membership import LocalGroup


def division(tree: SumTree, node: int, members: int) -> list[list[int]]:
    """Returns the nodes that each of `members` computes of `node`.

    Member i has a run of leaves, as even as possible, larger ones first, and computes
    the maximal nodes over them. It has a single node where leaves and members are
    powers of two.
    """
    begin, nodes = int(tree.start[node]), []
    for size in even(int(tree.stop[node]) - begin, members):
        nodes.append(_maximal(tree, node, begin, begin + size))
        begin += size
    return nodes


def _maximal(tree: SumTree, node: int, begin: int, end: int) -> list[int]:
    if tree.stop[node] <= begin or end <= tree.start[node]:
        return []
    if begin <= tree.start[node] and tree.stop[node] <= end:
        return [node]
    left, right = int(tree.left[node]), int(tree.right[node])
    return _maximal(tree, left, begin, end) + _maximal(tree, right, begin, end)


def fitting(
    code: Code | None, workers: int, group: LocalGroup | None, *, whole: bool = False
) -> Code:
    """Returns the code, or if None `codes.spread` that suits the job.

    Where own passes are whole, a shard then has `codes.usual_pieces` micro-batches;
    else four, which are what the bits depend on, or one for each process of a group.

    Args:
        code: the user's.
        workers: of the code, which are groups if there are any.
        group: this process's.
        whole: whether only helpers compute single micro-batches.

    Raises:
        ConfigError: the code is for another number of workers, or has fewer
            micro-batches than a group has processes.
    """
    if code is None:
        if group is not None:
            return codes.spread(workers, micro=_micro(group.size))
        micro = codes.usual_pieces(workers) if whole else _micro(1)
        return codes.spread(workers, micro=micro)
    _check(code, workers, group)
    return code


def _micro(size: int) -> int:
    return max(4, 1 << (size - 1).bit_length())


def _check(code: Code, workers: int, group: LocalGroup | None) -> None:
    job, remedy, size = str(workers), "build it with codedgrad.size()", 1
    if group is not None:
        size = group.size
        job = f"{workers} local groups of {size} processes"
        remedy = (
            f"with local_group a code is for the number of groups: "
            f"codes.spread({workers}, micro={_micro(size)})"
        )
    if code.workers != workers:
        raise ConfigError(
            f"the code is for {code.workers} workers and the job has {job}; {remedy}"
        )
    for worker in range(workers):
        for node in code.work[worker][: code.required[worker]]:
            leaves = int(code.tree.stop[node] - code.tree.start[node])
            if leaves < size:
                raise ConfigError(
                    f"{code.describe()} computes {leaves} micro-batch(es) at a time, "
                    f"too few for the {size} processes of a local group; use a code "
                    f"with more, codes.spread({workers}, micro={_micro(size)}), or "
                    f"smaller groups"
                )
