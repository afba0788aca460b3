"""Averages and objects of all workers: the right value, or one error everywhere."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from parallel.dropin import net
from parallel.training import everywhere
from torch import nn

import codedgrad
from codedgrad import ConfigError, MismatchError
from codedgrad.job import objects

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
Point = namedtuple("Point", "x y")


def rank() -> int:
    return codedgrad.rank()


def alike(mine: bytes) -> bool:
    return len(set(everywhere(mine.hex()))) == 1


def workers() -> range:
    return range(codedgrad.size())


# ---- numbers, tensors, structures ----


def test_numbers() -> None:
    n = codedgrad.size()
    assert codedgrad.allreduce(rank()) == (n - 1) / 2
    assert codedgrad.allreduce(2**70 + rank(), op="sum") == n * 2**70 + sum(workers())
    assert codedgrad.allreduce(0.5 * rank(), op="max") == 0.5 * (n - 1)
    assert codedgrad.allreduce(-rank(), op="min") == 1 - n
    assert codedgrad.allreduce(True, op="sum") == n
    assert codedgrad.allreduce(rank() == 0) == 1 / n
    assert codedgrad.allreduce(rank() == 0, op="max") is True
    assert codedgrad.allreduce(1j * rank(), op="sum") == 1j * sum(workers())
    assert math.isnan(codedgrad.allreduce(math.nan if rank() == 0 else 1.0, op="max"))
    assert codedgrad.allreduce(math.inf) == math.inf


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_tensors_keep_their_type(dtype: torch.dtype, op: str) -> None:
    values = [torch.tensor([[1, w + 2], [5 - w, 3]], dtype=dtype) for w in workers()]
    got = codedgrad.allreduce(values[rank()], op=op)
    every = torch.stack(values)
    want = {"sum": every.sum(0), "max": every.amax(0), "min": every.amin(0)}[op]
    assert got.dtype == dtype
    assert torch.equal(got, want.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_mean_is_rounded_once_and_has_the_same_bits(dtype: torch.dtype) -> None:
    values = torch.randn(codedgrad.size(), 33).to(dtype)
    got = codedgrad.allreduce(values[rank()].clone())
    want = values.double().mean(0)
    torch.testing.assert_close(got, want.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert alike(objects.encode(got))


def test_what_is_large_travels_in_pieces() -> None:
    values = torch.arange(5_000_000, dtype=torch.float32)
    got = codedgrad.allreduce(values + rank(), op="max")
    assert torch.equal(got, values + codedgrad.size() - 1)


def test_structures_come_back_as_they_were() -> None:
    value = OrderedDict(
        loss=torch.tensor(1.0 * rank()),
        counts=[rank(), {"b": np.float32(rank()), "a": np.arange(3) * rank()}],
        point=Point(1.0, (rank(), None)),
        empty=torch.zeros(0, 3),
        none={},
    )
    got = codedgrad.allreduce(value, op="sum")
    total = sum(workers())
    assert list(got) == list(value)
    assert type(got) is OrderedDict
    assert got["loss"] == total
    assert got["counts"][0] == total
    assert got["counts"][1]["b"] == total
    assert type(got["counts"][1]["b"]) is np.float32
    assert got["counts"][1]["a"].tolist() == [0, total, 2 * total]
    assert got["point"] == Point(codedgrad.size(), (total, None))
    assert got["empty"].shape == (0, 3)


def test_results_have_no_gradient_and_leave_the_input_alone() -> None:
    x = torch.ones(3, requires_grad=True)
    got = codedgrad.allreduce(x * 2)
    assert not got.requires_grad
    mine = torch.full((2,), float(rank()))
    codedgrad.allreduce(mine, op="sum")
    assert mine.tolist() == [rank()] * 2
    assert codedgrad.allreduce(torch.arange(6).view(2, 3).t(), op="max").shape == (3, 2)


def test_allgather_takes_any_length() -> None:
    mine = torch.full((rank() + 1, 2), rank(), dtype=torch.int16)
    got = codedgrad.allgather(mine)
    want = [torch.full((w + 1, 2), w, dtype=torch.int16) for w in workers()]
    assert torch.equal(got, torch.cat(want))
    assert codedgrad.allgather(torch.zeros(0, 2)).shape == (0, 2)
    assert codedgrad.allgather(torch.zeros(2, 0)).shape == (2 * codedgrad.size(), 0)


# ---- objects ----

STATE: Any = {
    "epoch": 3,
    ("a", 1): [1.5, -math.inf, None, True, "ü\x00", b"\x00\xff", bytearray(b"x"), 2j],
    "sets": [{1, 2}, frozenset({"a"}), torch.Size([2, 3]), torch.float16],
    "tensors": OrderedDict(w=torch.randn(2, 3), b=torch.ones(0), s=torch.tensor(7)),
    "numpy": [
        np.arange(4.0).reshape(2, 2),
        np.float64(0.1),
        np.zeros((0, 2)),
        np.int8(3),
    ],
    "half": torch.randn(3).bfloat16(),
    1: torch.device("cpu"),
}


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and objects.encode(a) == objects.encode(b)


def test_objects_travel() -> None:
    assert same(objects.decode(objects.encode(STATE)), STATE)
    got = codedgrad.broadcast_object(STATE if rank() == 0 else object())
    assert alike(objects.encode(got))
    assert got["numpy"][0].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    last = codedgrad.size() - 1
    assert codedgrad.broadcast_object({"mine": rank()}, last) == {"mine": last}
    mine = [rank(), "x" * rank(), {"t": torch.full((rank(),), 1.0)}]
    gathered = codedgrad.allgather_object(mine)
    assert [len(one[2]["t"]) for one in gathered] == list(workers())


def test_large_objects_travel() -> None:
    value = torch.arange(6_000_000)
    assert torch.equal(
        codedgrad.broadcast_object(value if rank() == 0 else None), value
    )
    gathered = codedgrad.allgather_object("x" * (20_000_000 if rank() == 0 else 3))
    assert [len(one) for one in gathered] == [20_000_000] + [3] * (codedgrad.size() - 1)


class Unknown:
    """What only pickle can send."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unknown)

    __hash__ = None  # type: ignore[assignment]


def test_pickle_only_if_asked_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"\['x'\]\[0\] is of type .*allow_pickle=True"
    ):
        codedgrad.broadcast_object({"x": [Unknown()]})
    with pytest.raises(ConfigError, match="Point"):
        codedgrad.allgather_object(Point(1, 2))
    got = codedgrad.broadcast_object({"x": Unknown()}, allow_pickle=True)
    assert got == {"x": Unknown()}
    assert codedgrad.allgather_object(Point(rank(), 0), allow_pickle=True)[0] == Point(
        0, 0
    )
    with pytest.raises(ConfigError, match="allow_pickle=True"):
        objects.decode(objects.encode(Unknown(), allow_pickle=True))
    with pytest.raises(ConfigError, match="cannot be pickled"):
        codedgrad.broadcast_object(lambda: 0, allow_pickle=True)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError, match="holds itself"):
        codedgrad.allgather_object(endless)


def test_only_one_worker_has_a_bad_object() -> None:
    bad = rank() == codedgrad.size() - 1
    with pytest.raises(ConfigError, match="wanted numbers"):
        codedgrad.allgather_object(Unknown() if bad else 1)
    assert codedgrad.allreduce(1, op="sum") == codedgrad.size()  # the job goes on


# ---- bad input ----

several = pytest.mark.skipif("not codedgrad.size() > 1", reason="one worker")


@pytest.mark.parametrize(
    ("value", "op", "words"),
    [
        (1, "median", r"one of .*'mean'"),
        (1, ["sum"], "one of"),
        ("text", "mean", "is of type str"),
        ({"a": [object()]}, "sum", r"value\['a'\]\[0\] is of type object"),
        (torch.tensor([1]), "mean", r"\.double\(\)"),
        (torch.tensor([True]), "sum", "bools"),
        (torch.tensor([1j]), "max", "no order"),
        (1j, "min", "no order"),
        (torch.eye(2).to_sparse(), "sum", "to_dense"),
        (np.array(["a"]), "sum", "can't convert"),
    ],
)
def test_what_cannot_be_reduced(value: Any, op: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        codedgrad.allreduce(value, op=op)


@several
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_a_sum_that_does_not_fit_is_an_error(dtype: torch.dtype) -> None:
    most = torch.iinfo(dtype).max
    with pytest.raises(ConfigError, match=r"does not fit torch\."):
        codedgrad.allreduce({"n": torch.tensor([1, most], dtype=dtype)}, op="sum")


@several
@pytest.mark.parametrize(
    ("first", "rest", "words"),
    [
        (torch.ones(2), torch.ones(3), r"\(3,\).*\(2,\)"),
        (torch.ones(2), torch.ones(2).double(), "float64"),
        (1, 1.0, "float"),
        ({"a": 1.0}, {"b": 1.0}, r"\['b'\].*\['a'\]"),
        ([1.0], [1.0, 2.0], r"\[1\]"),
        ([1.0], (1.0,), "tuple"),
        (None, 1.0, "NoneType"),
        (torch.tensor(1.0), 1.0, "tensor"),
    ],
)
def test_workers_that_differ_are_told(first: Any, rest: Any, words: str) -> None:
    with pytest.raises(MismatchError, match=f"worker 1 has .*{words}"):
        codedgrad.allreduce(first if rank() == 0 else rest)
    assert codedgrad.allreduce(1, op="sum") == codedgrad.size()


@several
def test_other_arguments_and_other_calls_are_told() -> None:
    with pytest.raises(MismatchError, match="root_rank = 1, worker 0 has 0"):
        codedgrad.broadcast_object(1, min(rank(), 1))
    with pytest.raises(MismatchError, match="allow_pickle"):
        codedgrad.allgather_object(1, allow_pickle=rank() == 0)
    with pytest.raises(MismatchError, match="has op = max, worker 0 has sum"):
        codedgrad.allreduce(1.0, op="sum" if rank() == 0 else "max")
    with pytest.raises(MismatchError, match="in an allgather"):
        codedgrad.allgather(torch.ones(1)) if rank() == 0 else codedgrad.allreduce(1.0)
    with pytest.raises(MismatchError, match="shape"):
        codedgrad.allgather(torch.ones(2, 2 + rank()))


def test_bad_tensors_and_roots() -> None:
    with pytest.raises(ConfigError, match="one dimension or more"):
        codedgrad.allgather(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="dense tensor, got list"):
        codedgrad.allgather([1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="root_rank must be 0 to"):
        codedgrad.broadcast_object(1, codedgrad.size())


@pytest.mark.parametrize("data", [b"", b"X123", b"J\x00\x01"])
def test_bytes_of_somebody_else_are_refused(data: bytes) -> None:
    with pytest.raises((ConfigError, ValueError)):
        objects.decode(data)


# ---- between the steps of exchanges that run ----


def test_between_the_steps_of_a_training() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    coded = codedgrad.CodedGradient(model, faults="slow:worker=0,factor=3")
    data = torch.utils.data.TensorDataset(torch.randn(48, 4))
    sampler = codedgrad.ShardSampler(data, batch_size=12)
    for shards in coded.steps(sampler):
        loss = coded.backward(lambda x: model(x).pow(2).mean(), shards)
        assert codedgrad.allreduce(loss) == loss
        assert codedgrad.allreduce(rank(), op="max") == codedgrad.size() - 1
        gathered = codedgrad.allgather_object([p.grad for p in model.parameters()])
        assert all(same(one, gathered[0]) for one in gathered)
    coded.close()


def test_between_the_passes_of_the_drop_in() -> None:
    from codedgrad.hvd.optimizer import detach

    model = net()
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        backward_passes_per_step=2,
    )
    for _ in range(2):
        model(torch.randn(8, 4)).mean().backward()
        assert codedgrad.allreduce(1, op="sum") == codedgrad.size()
        model(torch.randn(8, 4)).mean().backward()
        optimizer.step()
    detach(optimizer)


def test_join_tells_who_came_last() -> None:
    last = codedgrad.join()
    assert last in workers()
    assert alike(b"%d" % last)
