"""Loops and calls that were written for Horovod, with the import line changed.

What Horovod's own suite for torch looks after, in tests of our own. Each holds at any
number of workers; what has no counterpart is refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import codedgrad.hvd as hvd
from codedgrad import ConfigError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES = FLOATS + INTEGERS
several = pytest.mark.skipif("not hvd.size() > 1", reason="one worker")


def every(dtype: torch.dtype, *shape: int) -> Tensor:
    """The tensors of all workers, small integers, [workers, *shape]."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0, 7, (hvd.size(), *shape), generator=generator)
    return values.to(dtype)


# ---- who we are ----


def test_who_we_are() -> None:
    hvd.init()  # a second time: nothing
    assert hvd.is_initialized()
    assert 0 <= hvd.rank() < hvd.size()
    assert hvd.local_rank() < hvd.local_size() <= hvd.size()
    assert hvd.cross_rank() < hvd.cross_size()
    assert hvd.is_homogeneous()
    assert hvd.mpi_built()
    assert hvd.mpi_enabled()
    assert hvd.mpi_threads_supported()
    others = [hvd.gloo_built(), hvd.gloo_enabled(), hvd.ddl_built(), hvd.nccl_built()]
    assert not any([*others, hvd.ccl_built(), hvd.rocm_built()])
    assert hvd.cuda_built() == (torch.version.cuda is not None)
    hvd.barrier()


# ---- allreduce ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_allreduce_average(dtype: torch.dtype, dim: int) -> None:
    mine = torch.full([5] * dim, 6).to(dtype)
    got = hvd.allreduce(mine, average=True)
    assert got.dtype == dtype
    assert torch.equal(got, mine)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [hvd.Sum, hvd.Min, hvd.Max])
def test_allreduce_ops(dtype: torch.dtype, op: Any) -> None:
    values = every(dtype, 4, 3)
    wanted = {
        hvd.Sum: values.sum(0, dtype=dtype),
        hvd.Min: values.amin(0),
        hvd.Max: values.amax(0),
    }
    mine = values[hvd.rank()].clone()
    assert torch.equal(hvd.allreduce(mine, op=op), wanted[op])
    assert torch.equal(mine, values[hvd.rank()])
    assert hvd.allreduce_(mine, op=op) is mine
    assert torch.equal(mine, wanted[op])
    assert torch.equal(hvd.allreduce(values[hvd.rank()], op=op), wanted[op])


@pytest.mark.parametrize("dtype", DTYPES)
def test_allreduce_prescale_and_postscale(dtype: torch.dtype) -> None:
    values = every(dtype, 17)
    whole = not dtype.is_floating_point

    def times(x: Tensor, factor: float) -> Tensor:
        return (x.double() * factor).to(dtype) if whole else x * factor

    got = hvd.allreduce(values[hvd.rank()], op=hvd.Sum, prescale_factor=0.5)
    assert torch.equal(got, times(values, 0.5).sum(0, dtype=dtype))
    got = hvd.allreduce(values[hvd.rank()], op=hvd.Sum, postscale_factor=1.5)
    assert torch.equal(got, times(values.sum(0, dtype=dtype), 1.5))


@pytest.mark.parametrize("in_place", [False, True])
def test_allreduce_async(in_place: bool) -> None:
    reduce = hvd.allreduce_async_ if in_place else hvd.allreduce_async
    values = [every(d, 3) for d in DTYPES]
    mine = [v[hvd.rank()].clone() for v in values]
    handles = [reduce(m, op=hvd.Sum, name=f"t{i}") for i, m in enumerate(mine)]
    assert all(map(hvd.poll, handles))
    for value, one, handle in zip(values, mine, handles, strict=True):
        got = hvd.synchronize(handle)
        assert torch.equal(got, value.sum(0, dtype=value.dtype))
        assert (got is one) == in_place
    with pytest.raises(ConfigError, match="_async"):
        hvd.synchronize(handles[0])
    with pytest.raises(ConfigError, match="_async"):
        hvd.poll(-1)


@pytest.mark.parametrize("how", ["plain", "in place", "async", "async in place"])
@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum, hvd.Max])
def test_grouped_allreduce(how: str, op: Any) -> None:
    values = [every(torch.float64, 2, 3), every(torch.int32, 4), every(torch.half, 1)]
    mine = [v[hvd.rank()].clone() for v in values]
    calls: dict[str, Callable[..., Any]] = {
        "plain": hvd.grouped_allreduce,
        "in place": hvd.grouped_allreduce_,
        "async": hvd.grouped_allreduce_async,
        "async in place": hvd.grouped_allreduce_async_,
    }
    got = calls[how](mine, op=op, name="group")
    got = hvd.synchronize(got) if isinstance(got, int) else got
    for value, one in zip(values, got, strict=True):
        want = value.amax(0) if op is hvd.Max else value.sum(0, dtype=value.dtype)
        if op is hvd.Average:
            size = hvd.size()
            exact = value.dtype.is_floating_point
            want = (
                want / size if exact else torch.div(want, size, rounding_mode="trunc")
            )
        torch.testing.assert_close(one, want)
    if "in place" in how:
        assert all(a is b for a, b in zip(mine, got, strict=True))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum])
def test_the_gradient_of_allreduce(grouped: bool, op: Any) -> None:
    x = torch.ones(3, 2, requires_grad=True)
    y = hvd.grouped_allreduce([x], op=op)[0] if grouped else hvd.allreduce(x, op=op)
    y.backward(torch.full((3, 2), 2.0))
    assert x.grad is not None
    assert torch.equal(
        x.grad, torch.full((3, 2), 2.0 * (1 if op is hvd.Average else hvd.size()))
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: hvd.allreduce(x, op=hvd.Adasum), "no Adasum"),
        (lambda x: hvd.allreduce(x, op="sum"), "got 'sum'"),
        (lambda x: hvd.allreduce(x, average=True, op=hvd.Sum), "not both"),
        (lambda x: hvd.allreduce(x, op=hvd.Max, prescale_factor=2.0), "need a sum"),
        (lambda _: hvd.allreduce(3.0), "takes a tensor, got float"),
        (lambda x: hvd.allreduce(x, compression="fp16"), "Compression.none"),
        (lambda x: hvd.allreduce(x, process_set=[0]), "process set"),
        (lambda x: hvd.broadcast(x, hvd.size()), "root_rank must be"),
        (lambda x: hvd.allgather(x[0]), "one dimension or more"),
        (lambda x: hvd.alltoall(x, splits=[99]), "splits of worker 0"),
        (lambda x: hvd.reducescatter(x[0]), "one dimension or more"),
        (lambda x: hvd.sparse_allreduce_async(x), "sparse COO"),
        (lambda _: hvd.ProcessSet([0]), "process set"),
        (lambda _: hvd.add_process_set([0]), "add_process_set"),
        (lambda _: hvd.elastic.run, r"elastic\.run.*checkpoint"),
        (lambda x: hvd.SyncBatchNorm(4)(x), r"\[n, channels"),
        (lambda _: hvd.start_timeline("x"), "codedgrad report"),
        (lambda _: hvd.init(comm=[0]), "ranks cannot be chosen"),
        (lambda _: hvd.broadcast_object({"x": object()}), "allow_pickle=True"),
    ],
)
def test_what_is_refused_says_so(call: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call(torch.ones(2))


@several
def test_workers_that_differ() -> None:
    rank = hvd.rank()
    with pytest.raises(MismatchError, match=r"\(17, 17\)|\(17, 18\)"):
        hvd.allreduce(torch.ones(17, 17 + min(rank, 1)))
    with pytest.raises(MismatchError, match="int32"):
        hvd.allreduce(torch.ones(2, dtype=torch.int32 if rank else torch.float32))
    with pytest.raises(MismatchError, match="other"):
        hvd.allreduce(torch.ones(2), name="other" if rank else "one")
    with pytest.raises(MismatchError, match="shape"):
        hvd.allgather(torch.ones(2, 2 + min(rank, 1)))
    with pytest.raises(MismatchError, match="float64"):
        hvd.allgather(torch.ones(2).double() if rank else torch.ones(2))
    with pytest.raises(MismatchError, match="root_rank"):
        hvd.broadcast(torch.ones(2), min(rank, 1))
    with pytest.raises(MismatchError, match=r"\(3,\)"):
        hvd.broadcast(torch.ones(3 if rank else 2), 0)
    with pytest.raises(MismatchError, match="allreduce"):
        hvd.allgather(torch.ones(2)) if rank else hvd.allreduce(torch.ones(2))


def test_two_operations_of_one_name() -> None:
    handle = hvd.allreduce_async(torch.ones(2), name="twice")
    with pytest.raises(ConfigError, match="'twice' is under way"):
        hvd.allreduce_async(torch.ones(2), name="twice")
    hvd.synchronize(handle)
    hvd.synchronize(hvd.allreduce_async(torch.ones(2), name="twice"))


# ---- allgather, broadcast and the rest ----


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool])
def test_allgather_of_unequal_lengths(dtype: torch.dtype) -> None:
    parts = [torch.full((w + 1, 2), w % 2).to(dtype) for w in range(hvd.size())]
    mine = parts[hvd.rank()]
    assert torch.equal(hvd.allgather(mine), torch.cat(parts))
    assert torch.equal(hvd.synchronize(hvd.allgather_async(mine)), torch.cat(parts))
    (one, two) = hvd.grouped_allgather([mine, mine])
    assert torch.equal(one, two)
    both = hvd.synchronize(hvd.grouped_allgather_async([mine, mine]))
    assert torch.equal(both[1], torch.cat(parts))


def test_the_gradient_of_allgather() -> None:
    x = torch.ones(hvd.rank() + 1, 3, requires_grad=True)
    y = hvd.allgather(x)
    y.backward(torch.arange(len(y)).float()[:, None].expand(-1, 3))
    begin = sum(range(hvd.rank() + 1))
    rows = torch.arange(begin, begin + hvd.rank() + 1).float()[:, None].expand(-1, 3)
    assert torch.equal(x.grad, rows * hvd.size())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool])
def test_broadcast(dtype: torch.dtype) -> None:
    for root in range(hvd.size()):
        mine = torch.full((3, 2), hvd.rank() % 2).to(dtype)
        want = torch.full((3, 2), root % 2).to(dtype)
        assert torch.equal(hvd.broadcast(mine, root), want)
        assert torch.equal(hvd.synchronize(hvd.broadcast_async(mine, root)), want)
        assert torch.equal(mine, torch.full((3, 2), hvd.rank() % 2).to(dtype))
        hvd.synchronize(hvd.broadcast_async_(mine, root, name="b"))
        assert torch.equal(mine, want)
    assert (
        hvd.broadcast(torch.tensor(hvd.rank()), root_rank=0, name="epoch").item() == 0
    )


def test_the_gradient_of_broadcast() -> None:
    last = hvd.size() - 1
    x = torch.ones(3, requires_grad=True)
    hvd.broadcast(x, last).backward(torch.full((3,), 2.0))
    mine = 2.0 * hvd.size() if hvd.rank() == last else 0.0
    assert torch.equal(x.grad, torch.full((3,), mine))


def test_alltoall_and_reducescatter() -> None:
    size, rank = hvd.size(), hvd.rank()
    mine = torch.arange(size).repeat_interleave(2) + 100 * rank
    want = (100 * torch.arange(size) + rank).repeat_interleave(2)
    assert torch.equal(hvd.alltoall(mine), want)
    splits = torch.tensor([w + 1 for w in range(size)])
    mine = torch.full((int(splits.sum()), 2), float(rank))
    got, received = hvd.alltoall(mine, splits)
    assert received.tolist() == [rank + 1] * size
    assert torch.equal(
        got[:, 0], torch.arange(size).repeat_interleave(rank + 1).float()
    )
    assert hvd.synchronize(hvd.alltoall_async(mine, splits))[0].shape == got.shape
    values = every(torch.float64, 2 * size + 1, 3)
    lengths = [3] + [2] * (size - 1)
    want = values.sum(0).split(lengths)[rank]
    assert torch.equal(hvd.reducescatter(values[rank], op=hvd.Sum), want)
    handle = hvd.grouped_reducescatter_async([values[rank]], name="r", op=hvd.Sum)
    assert torch.equal(hvd.synchronize(handle)[0], want)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_over_all_workers(affine: bool) -> None:
    parts = [
        torch.randn(w + 2, 3, 4, 5, dtype=torch.float64) for w in range(hvd.size())
    ]
    whole = torch.cat(parts).requires_grad_()
    plain = torch.nn.BatchNorm2d(3, affine=affine).double()
    want = plain(whole)
    want.pow(3).sum().backward()
    mine = parts[hvd.rank()].clone().requires_grad_()
    layer = hvd.SyncBatchNorm(3, affine=affine).double()
    got = layer(mine)
    got.pow(3).sum().backward()
    begin = sum(len(p) for p in parts[: hvd.rank()])
    own = slice(begin, begin + len(mine))
    torch.testing.assert_close(got, want[own])
    torch.testing.assert_close(mine.grad, whole.grad[own])
    if affine:
        gradient = hvd.allreduce(layer.weight.grad, op=hvd.Sum)
        torch.testing.assert_close(gradient, plain.weight.grad)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layer, name), getattr(plain, name))
    torch.testing.assert_close(layer.eval()(mine), plain.eval()(mine))
