from __future__ import annotations

import math

import pytest
import torch
from ops.cases import COUNTS, DTYPES, SIZES, exact_gram, integers

from codedgrad import ops
from codedgrad.errors import ConfigError


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_integers_are_exact(dtype: torch.dtype, size: int) -> None:
    for k in COUNTS:
        for offset in (0, 1):
            inputs = integers(k, size, dtype, offset=offset)
            want = exact_gram(inputs)
            assert torch.equal(ops.gram(inputs), want)
            assert torch.equal(ops.gram_reference(inputs), want)


def test_many_inputs() -> None:
    inputs = integers(37, 700, torch.float32)
    assert torch.equal(ops.gram(inputs), exact_gram(inputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_is_within_its_bound_and_threads_do_not_matter(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(400_001).to(dtype) for _ in range(6)]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.gram(inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(g, found[0]) for g in found)
    assert torch.equal(found[0], found[0].T)
    error = (found[0] - ops.gram_reference(inputs)).abs()
    bound = ops.gram_reference([x.abs() for x in inputs]) * 64 * 2.0**-24
    assert bool((error <= bound).all())


def test_shapes_nan_and_inf() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert ops.gram([x.T, x.T]).tolist() == [[506.0, 506.0], [506.0, 506.0]]
    bad, worse = torch.ones(20), torch.ones(20)
    bad[17], worse[3] = math.nan, math.inf
    got = ops.gram([torch.ones(20), bad, worse])
    assert got[0, 0] == 20
    assert bool(got[1].isnan().all())
    assert got[0, 2] == got[2, 2] == math.inf


def test_what_does_not_fit_is_refused() -> None:
    x = torch.ones(4)
    for message, inputs in {
        "no input": [],
        "one shape": [x, torch.ones(5)],
        "one dtype": [x, x.double()],
        "inputs of torch.int32": [x.int()],
    }.items():
        with pytest.raises(ConfigError, match=message):
            ops.gram(inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 33])
def test_opcheck(dtype: torch.dtype, size: int) -> None:
    op = torch.ops.codedgrad.gram.default
    torch.library.opcheck(op, (integers(3, size, dtype),))
