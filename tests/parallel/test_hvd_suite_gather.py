"""Horovod's tests of allgather, broadcast and alltoall, by their names."""

from __future__ import annotations

import itertools

import torch
from parallel.suite import (
    FLOATS,
    SHAPES,
    WHOLE,
    equal,
    mine,
    refused,
    refuses_a_process_set,
    several,
    values,
)

import codedgrad.hvd as hvd

ALL = list(itertools.product([*WHOLE, *FLOATS, torch.bool], SHAPES))


def unequal(dtype: torch.dtype, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """A tensor of every worker, with w + 1 rows."""
    return [values(dtype, (w + 1, *shape))[w] for w in range(hvd.size())]


# ---- allgather ----


def test_horovod_allgather() -> None:
    for dtype, shape in ALL:
        x = values(dtype, shape)
        equal(hvd.allgather(mine(x)), x.flatten(0, 1))


def test_horovod_allgather_variable_size() -> None:
    for dtype, shape in ALL:
        xs = unequal(dtype, shape)
        equal(hvd.allgather(xs[hvd.rank()]), torch.cat(xs))


def test_horovod_allgather_async_fused() -> None:
    every = [unequal(d, s) for d, s in ALL]
    handles = [hvd.allgather_async(xs[hvd.rank()]) for xs in every]
    for xs, handle in zip(every, handles, strict=True):
        assert hvd.poll(handle)
        equal(hvd.synchronize(handle), torch.cat(xs))


def test_horovod_allgather_process_sets() -> None:
    refuses_a_process_set(hvd.allgather, torch.ones(2))


@several
def test_horovod_allgather_error() -> None:
    refused(lambda: hvd.allgather(torch.ones(2, 10 * (hvd.rank() + 1))), "shape")


@several
def test_horovod_allgather_type_error() -> None:
    dtype = torch.int32 if hvd.rank() % 2 == 0 else torch.float32
    refused(lambda: hvd.allgather(torch.ones(3).to(dtype)), "type")


def test_horovod_allgather_duplicate_name_error() -> None:
    handle = hvd.allgather_async(torch.ones(3), name="again")
    refused(lambda: hvd.allgather_async(torch.ones(3), name="again"), "'again'")
    hvd.synchronize(handle)


def check_gradient(x: torch.Tensor, y: torch.Tensor) -> None:
    """The gradient of row r is the workers' sum of theirs: r + 1 times the size."""
    rows = torch.arange(1, len(y) + 1, dtype=y.dtype)
    y.backward(rows.view(-1, *[1] * (y.dim() - 1)).expand_as(y))
    begin = sum(range(1, hvd.rank() + 1))
    want = hvd.size() * rows[begin : begin + len(x)]
    equal(x.grad, want.view(-1, *[1] * (y.dim() - 1)).expand_as(x))


def test_horovod_allgather_grad() -> None:
    for shape in SHAPES:
        x = unequal(torch.float64, shape)[hvd.rank()].requires_grad_()
        check_gradient(x, hvd.allgather(x))


def test_horovod_allgather_grad_process_sets() -> None:
    refuses_a_process_set(hvd.allgather, torch.ones(2, requires_grad=True))


def test_horovod_grouped_allgather() -> None:
    every = [unequal(d, s) for d, s in ALL]
    got = hvd.grouped_allgather([xs[hvd.rank()] for xs in every])
    for one, xs in zip(got, every, strict=True):
        equal(one, torch.cat(xs))


def test_horovod_grouped_allgather_process_sets() -> None:
    refuses_a_process_set(hvd.grouped_allgather, [torch.ones(2)])


def test_horovod_grouped_allgather_grad() -> None:
    xs = [unequal(torch.float64, s)[hvd.rank()].requires_grad_() for s in SHAPES]
    for x, y in zip(xs, hvd.grouped_allgather(xs), strict=True):
        check_gradient(x, y)


# ---- broadcast ----


def test_horovod_broadcast() -> None:
    for root in range(hvd.size()):
        for dtype, shape in ALL:
            x = values(dtype, shape)
            own = mine(x)
            equal(hvd.broadcast(own, root), x[root])
            equal(own, x[hvd.rank()])


def test_horovod_broadcast_inplace() -> None:
    for root in range(hvd.size()):
        for dtype, shape in ALL:
            x = values(dtype, shape)
            own = mine(x)
            assert hvd.broadcast_(own, root) is own
            equal(own, x[root])


def test_horovod_broadcast_process_sets() -> None:
    refuses_a_process_set(hvd.broadcast, torch.ones(2), 0)


@several
def test_horovod_broadcast_error() -> None:
    refused(lambda: hvd.broadcast(torch.ones(17 + hvd.rank()), 0), r"\(1\d,\)")


@several
def test_horovod_broadcast_type_error() -> None:
    dtype = torch.int32 if hvd.rank() % 2 == 0 else torch.float32
    refused(lambda: hvd.broadcast(torch.ones(3).to(dtype), 0), "int32")


@several
def test_horovod_broadcast_rank_error() -> None:
    refused(lambda: hvd.broadcast(torch.ones(3), hvd.rank()), "root_rank")


def test_horovod_broadcast_duplicate_name_error() -> None:
    handle = hvd.broadcast_async(torch.ones(3), 0, name="again")
    refused(lambda: hvd.broadcast_async(torch.ones(3), 0, name="again"), "'again'")
    hvd.synchronize(handle)


def test_horovod_broadcast_grad() -> None:
    for root, shape in itertools.product(range(hvd.size()), SHAPES):
        x = mine(values(torch.float64, shape), gradient=True)
        y = hvd.broadcast(x, root)
        y.backward(torch.ones_like(y))
        equal(x.grad, torch.full_like(x, hvd.size() * (hvd.rank() == root)))


def test_horovod_broadcast_grad_process_sets() -> None:
    refuses_a_process_set(hvd.broadcast, torch.ones(2, requires_grad=True), 0)


# ---- alltoall ----


def uneven(dtype: torch.dtype, columns: int = 2) -> tuple[torch.Tensor, list[int]]:
    """Worker w sends i + w rows of the number i to worker i."""
    splits = [i + hvd.rank() for i in range(hvd.size())]
    rows = torch.arange(hvd.size()).repeat_interleave(torch.tensor(splits))
    return rows[:, None].expand(-1, columns).to(dtype), splits


def test_horovod_alltoall() -> None:
    size, rank = hvd.size(), hvd.rank()
    for dtype in [*WHOLE, *FLOATS]:
        x, splits = uneven(dtype)
        got, received = hvd.alltoall(x, torch.tensor(splits, dtype=torch.int32))
        assert received.tolist() == [rank + w for w in range(size)]
        assert received.dtype == torch.int32
        equal(got, torch.full((sum(received.tolist()), 2), rank).to(dtype))


def test_horovod_alltoall_equal_split() -> None:
    size, rank = hvd.size(), hvd.rank()
    for dtype, shape in itertools.product([*WHOLE, *FLOATS], SHAPES):
        x = values(dtype, (2 * size, *shape))
        got = hvd.alltoall(mine(x))
        equal(got, torch.cat([x[w][2 * rank : 2 * rank + 2] for w in range(size)]))


def test_horovod_alltoall_process_sets() -> None:
    refuses_a_process_set(hvd.alltoall, torch.ones(hvd.size()))


@several
def test_horovod_alltoall_type_error() -> None:
    dtype = torch.int32 if hvd.rank() % 2 == 0 else torch.float32
    refused(lambda: hvd.alltoall(torch.ones(hvd.size()).to(dtype)), "do not fit")


@several
def test_horovod_alltoall_equal_split_length_error() -> None:
    refused(lambda: hvd.alltoall(torch.ones(hvd.size() + 1)), "rows of its tensor")


def test_horovod_alltoall_splits_error() -> None:
    splits = torch.full((hvd.size(),), 2, dtype=torch.int32)
    refused(lambda: hvd.alltoall(torch.ones(hvd.size()), splits), "with the sum")


def test_horovod_alltoall_splits_type_error() -> None:
    splits = torch.ones(hvd.size())
    refused(lambda: hvd.alltoall(torch.ones(hvd.size()), splits), "must be integers")


@several
def test_horovod_alltoall_rank_error() -> None:
    x = torch.ones(2 * hvd.size(), 10 * (hvd.rank() + 1))
    refused(lambda: hvd.alltoall(x), "do not fit")


def test_horovod_alltoall_grad() -> None:
    x, splits = uneven(torch.float64)
    x = x.clone().requires_grad_()
    got, _ = hvd.alltoall(x, splits)
    got.backward(torch.full_like(got, hvd.rank() + 1.0))
    # What went to worker i comes back with its gradient, i + 1.
    equal(x.grad, x.detach() + 1.0)


def test_horovod_alltoall_equal_split_grad() -> None:
    size = hvd.size()
    x = torch.ones(2 * size, 3, dtype=torch.float64, requires_grad=True)
    got = hvd.alltoall(x)
    got.backward(torch.full_like(got, hvd.rank() + 1.0))
    rows = torch.arange(1, size + 1, dtype=torch.float64).repeat_interleave(2)
    equal(x.grad, rows[:, None].expand(-1, 3))


def test_horovod_alltoall_grad_process_sets() -> None:
    x = torch.ones(hvd.size(), requires_grad=True)
    refuses_a_process_set(hvd.alltoall, x)
