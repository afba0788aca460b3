"""Horovod's tests of allreduce, by their names, in code of our own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from parallel.suite import (
    FLOATS,
    SHAPES,
    WHOLE,
    equal,
    mean,
    mine,
    refused,
    refuses_a_process_set,
    several,
    total,
    values,
)

import codedgrad.hvd as hvd

ALL = list(itertools.product([*WHOLE, *FLOATS], SHAPES))


def test_horovod_allreduce() -> None:
    for dtype, shape in ALL:
        x = values(dtype, shape)
        equal(hvd.allreduce(mine(x), op=hvd.Sum), total(x))


def test_horovod_allreduce_average() -> None:
    for dtype, shape in ALL:
        x = values(dtype, shape)
        equal(hvd.allreduce(mine(x)), mean(x))


@pytest.mark.parametrize("in_place", [False, True])
def test_horovod_allreduce_min(in_place: bool) -> None:
    for dtype, shape in ALL:
        x = values(dtype, shape)
        reduce = hvd.allreduce_ if in_place else hvd.allreduce
        equal(reduce(mine(x), op=hvd.Min), x.amin(0))


@pytest.mark.parametrize("in_place", [False, True])
def test_horovod_allreduce_max(in_place: bool) -> None:
    for dtype, shape in ALL:
        x = values(dtype, shape)
        reduce = hvd.allreduce_ if in_place else hvd.allreduce
        equal(reduce(mine(x), op=hvd.Max), x.amax(0))


def test_horovod_allreduce_product() -> None:
    for dtype, shape in ALL:
        x = values(dtype, shape) % 3
        equal(hvd.allreduce(mine(x), op=hvd.Product), x.prod(0, dtype=dtype))
        y = mine(x)
        assert hvd.allreduce_(y, op=hvd.Product) is y
        equal(y, x.prod(0, dtype=dtype))


def test_horovod_allreduce_inplace() -> None:
    for dtype, shape in ALL:
        x = values(dtype, shape)
        y = mine(x)
        assert hvd.allreduce_(y, op=hvd.Sum) is y
        equal(y, total(x))


def test_horovod_allreduce_async_fused() -> None:
    every = [values(d, s, seed) for seed, (d, s) in enumerate(ALL)]
    handles = [hvd.allreduce_async(mine(x), op=hvd.Sum) for x in every]
    assert all(map(hvd.poll, handles))
    for x, handle in zip(every, handles, strict=True):
        equal(hvd.synchronize(handle), total(x))


def scaled(dtype: torch.dtype, scale: str) -> None:
    """Integers are scaled as in double, and cut."""
    factor = 1.5
    for shape in SHAPES:
        x = values(dtype, shape)

        def times(t: torch.Tensor) -> torch.Tensor:
            return (t.double() * factor).to(t.dtype)

        want = total(times(x)) if scale.startswith("pre") else times(total(x))
        equal(hvd.allreduce(mine(x), op=hvd.Sum, **{scale: factor}), want)


def test_horovod_allreduce_prescale() -> None:
    for dtype in [*WHOLE, *FLOATS]:
        scaled(dtype, "prescale_factor")


def test_horovod_allreduce_postscale() -> None:
    for dtype in [*WHOLE, *FLOATS]:
        scaled(dtype, "postscale_factor")


def test_horovod_allreduce_process_sets() -> None:
    refuses_a_process_set(hvd.allreduce, torch.ones(2))


@several
def test_horovod_allreduce_error() -> None:
    refused(lambda: hvd.allreduce(torch.ones(17 + hvd.rank(), 3)), r"\(1\d, 3\)")
    shape = (17, 6) if hvd.rank() == 0 else (17, 2, 3)
    refused(lambda: hvd.allreduce(torch.ones(shape)), r"\(17, ")


@several
def test_horovod_allreduce_type_error() -> None:
    dtype = torch.int32 if hvd.rank() % 2 == 0 else torch.float32
    refused(lambda: hvd.allreduce(torch.ones(3).to(dtype)), "int32")


def test_horovod_allreduce_duplicate_name_error() -> None:
    handle = hvd.allreduce_async(torch.ones(3), name="again")
    refused(lambda: hvd.allreduce_async(torch.ones(3), name="again"), "'again'")
    hvd.synchronize(handle)


def gradient_of(operation: Any, want: float, **how: Any) -> None:
    for shape in SHAPES:
        x = mine(values(torch.float64, shape), gradient=True)
        y = operation(x, **how)
        y.backward(torch.ones_like(y))
        equal(x.grad, torch.full(shape, want, dtype=torch.float64))


def test_horovod_allreduce_grad() -> None:
    gradient_of(hvd.allreduce, float(hvd.size()), op=hvd.Sum)


def test_horovod_allreduce_grad_average() -> None:
    gradient_of(hvd.allreduce, 1.0, op=hvd.Average)


def test_horovod_allreduce_grad_process_sets() -> None:
    x = torch.ones(2, requires_grad=True)
    refuses_a_process_set(hvd.allreduce, x)


# ---- several at a time ----


def grouped(dtype: torch.dtype, shape: tuple[int, ...]) -> list[torch.Tensor]:
    return [values(dtype, shape, seed) for seed in range(4)]


def test_horovod_grouped_allreduce() -> None:
    for dtype, shape in ALL:
        xs = grouped(dtype, shape)
        got = hvd.grouped_allreduce([mine(x) for x in xs], op=hvd.Sum)
        for one, x in zip(got, xs, strict=True):
            equal(one, total(x))


def test_horovod_grouped_allreduce_average() -> None:
    for dtype, shape in ALL:
        xs = grouped(dtype, shape)
        got = hvd.grouped_allreduce([mine(x) for x in xs], average=True)
        for one, x in zip(got, xs, strict=True):
            equal(one, mean(x))


def test_horovod_grouped_allreduce_inplace() -> None:
    xs = [values(d, s) for d, s in ALL]
    own = [mine(x) for x in xs]
    hvd.grouped_allreduce_(own, op=hvd.Sum)
    for one, x in zip(own, xs, strict=True):
        equal(one, total(x))


def test_horovod_grouped_allreduce_process_sets() -> None:
    refuses_a_process_set(hvd.grouped_allreduce, [torch.ones(2)])


def grouped_gradient(want: float, op: Any) -> None:
    xs = [mine(x, gradient=True) for x in grouped(torch.float64, (3, 2))]
    for y in hvd.grouped_allreduce(xs, op=op):
        y.backward(torch.ones_like(y), retain_graph=True)
    for x in xs:
        equal(x.grad, torch.full((3, 2), want, dtype=torch.float64))


def test_horovod_grouped_allreduce_grad() -> None:
    grouped_gradient(float(hvd.size()), hvd.Sum)


def test_horovod_grouped_allreduce_grad_average() -> None:
    grouped_gradient(1.0, hvd.Average)


def test_horovod_grouped_allreduce_grad_process_sets() -> None:
    refuses_a_process_set(hvd.grouped_allreduce, [torch.ones(2, requires_grad=True)])


# ---- reducescatter ----


def parts_of(x: torch.Tensor) -> torch.Tensor:
    """This worker's part; where it does not divide, the first ones are longer."""
    return torch.tensor_split(x, hvd.size())[hvd.rank()]


ROWS: list[tuple[int, ...]] = [(9,), (8, 2), (7, 2, 3)]
SCATTERED = list(itertools.product([torch.int32, *FLOATS], ROWS))


def test_horovod_reducescatter() -> None:
    for dtype, shape in SCATTERED:
        x = values(dtype, shape)
        equal(hvd.reducescatter(mine(x), op=hvd.Sum), parts_of(total(x)))


def test_horovod_reducescatter_average() -> None:
    for dtype, shape in SCATTERED:
        x = values(dtype, shape)
        equal(hvd.reducescatter(mine(x)), parts_of(mean(x)))


def reducescatter_scaled(name: str) -> None:
    for dtype, shape in itertools.product(FLOATS, ROWS):
        x = values(dtype, shape)
        got = hvd.reducescatter(mine(x), op=hvd.Sum, **{name: 0.5})
        equal(got, parts_of(total(x) * 0.5))


def test_horovod_reducescatter_prescale() -> None:
    reducescatter_scaled("prescale_factor")


def test_horovod_reducescatter_postscale() -> None:
    reducescatter_scaled("postscale_factor")


def test_horovod_reducescatter_scalar_error() -> None:
    refused(lambda: hvd.reducescatter(torch.tensor(1.0)), "one dimension")


def test_horovod_reducescatter_adasum() -> None:
    refused(lambda: hvd.reducescatter(torch.ones(4), op=hvd.Adasum), "Adasum")


def test_horovod_reducescatter_async_fused() -> None:
    every = [values(d, s, seed) for seed, (d, s) in enumerate(SCATTERED)]
    handles = [hvd.reducescatter_async(mine(x), op=hvd.Sum) for x in every]
    for x, handle in zip(every, handles, strict=True):
        equal(hvd.synchronize(handle), parts_of(total(x)))


@several
def test_horovod_reducescatter_error() -> None:
    refused(lambda: hvd.reducescatter(torch.ones(17 + hvd.rank(), 3)), r"\(1\d, 3\)")
    shape = (17, 6) if hvd.rank() == 0 else (17, 2, 3)
    refused(lambda: hvd.reducescatter(torch.ones(shape)), r"\(17, ")


@several
def test_horovod_reducescatter_type_error() -> None:
    dtype = torch.int32 if hvd.rank() % 2 == 0 else torch.float32
    refused(lambda: hvd.reducescatter(torch.ones(3).to(dtype)), "int32")


def test_horovod_reducescatter_duplicate_name_error() -> None:
    handle = hvd.reducescatter_async(torch.ones(3), name="again")
    refused(lambda: hvd.reducescatter_async(torch.ones(3), name="again"), "'again'")
    hvd.synchronize(handle)


def test_horovod_reducescatter_grad() -> None:
    gradient_of(hvd.reducescatter, float(hvd.size()), op=hvd.Sum)


def test_horovod_reducescatter_grad_average() -> None:
    gradient_of(hvd.reducescatter, 1.0, op=hvd.Average)


def test_horovod_reducescatter_process_sets() -> None:
    refuses_a_process_set(hvd.reducescatter, torch.ones(4))


def test_horovod_reducescatter_grad_process_sets() -> None:
    refuses_a_process_set(hvd.reducescatter, torch.ones(4, requires_grad=True))


def test_horovod_grouped_reducescatter() -> None:
    xs = [values(d, s) for d, s in SCATTERED]
    got = hvd.grouped_reducescatter([mine(x) for x in xs], op=hvd.Sum)
    for one, x in zip(got, xs, strict=True):
        equal(one, parts_of(total(x)))


def test_horovod_grouped_reducescatter_average() -> None:
    xs = [values(d, s) for d, s in SCATTERED]
    for one, x in zip(
        hvd.grouped_reducescatter([mine(x) for x in xs]), xs, strict=True
    ):
        equal(one, parts_of(mean(x)))


def grouped_reducescatter_scaled(name: str) -> None:
    xs = [values(d, s) for d, s in itertools.product(FLOATS, ROWS)]
    how: Any = {"op": hvd.Sum, name: 0.5}
    got = hvd.grouped_reducescatter([mine(x) for x in xs], **how)
    for one, x in zip(got, xs, strict=True):
        equal(one, parts_of(total(x) * 0.5))


def test_horovod_grouped_reducescatter_prescale() -> None:
    grouped_reducescatter_scaled("prescale_factor")


def test_horovod_grouped_reducescatter_postscale() -> None:
    grouped_reducescatter_scaled("postscale_factor")


def test_horovod_grouped_reducescatter_scalar_error() -> None:
    scalars = [torch.tensor(1.0), torch.tensor(2.0)]
    refused(lambda: hvd.grouped_reducescatter(scalars), "one dimension")


def test_horovod_grouped_reducescatter_process_sets() -> None:
    refuses_a_process_set(hvd.grouped_reducescatter, [torch.ones(4)])


def test_horovod_grouped_reducescatter_grad() -> None:
    xs = [mine(values(torch.float64, s), gradient=True) for s in ROWS]
    for y in hvd.grouped_reducescatter(xs, op=hvd.Sum):
        y.backward(torch.ones_like(y))
    for x in xs:
        equal(x.grad, torch.full_like(x, hvd.size()))
