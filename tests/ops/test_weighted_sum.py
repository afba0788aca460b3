from __future__ import annotations

import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ops.cases import COUNTS, DTYPES, SIZES, integers

from codedgrad import ops
from codedgrad.errors import ConfigError

HALVES = [torch.float32, torch.bfloat16, torch.float16]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_integers_are_exact(dtype: torch.dtype, size: int) -> None:
    for k in COUNTS:
        for offset in (0, 1):
            inputs = integers(k, size, dtype, offset=offset)
            weights = [float(j % 3 - 1) for j in range(k)]
            want = sum(
                (x.double() * w for x, w in zip(inputs, weights, strict=True)),
                start=torch.zeros(size, dtype=torch.float64),
            )
            got = ops.weighted_sum(inputs, weights)
            assert got.dtype == dtype
            assert torch.equal(got.double(), want)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("out", HALVES)
@pytest.mark.parametrize("wire", [None, torch.bfloat16, torch.float16])
def test_the_same_bits_as_the_reference(
    dtype: torch.dtype, out: torch.dtype, wire: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    for k in COUNTS:
        # From denormal halves to the largest.
        scale = torch.exp2(torch.randint(-24, 14, (k, 1003)).float())
        inputs = list((torch.randn(k, 1003) * scale).to(dtype))
        weights = torch.randn(k).tolist()
        got = ops.weighted_sum(inputs, weights, out, wire)
        want = ops.weighted_sum_reference(inputs, weights, out, wire)
        assert torch.equal(bits(got), bits(want))


def test_doubles_are_summed_in_double() -> None:
    torch.manual_seed(0)
    inputs = list(torch.randn(5, 1003, dtype=torch.float64))
    weights = torch.randn(5, dtype=torch.float64).tolist()
    want = ops.weighted_sum_reference(inputs, weights)
    assert torch.equal(ops.weighted_sum(inputs, weights), want)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_number_of_threads_does_not_matter(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    size = (2 << 20) + 17  # above the size from which threads are used
    inputs = [torch.randn(size).to(dtype) for _ in range(3)]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.weighted_sum(inputs, [0.3, -1.7, 2.9]))
    finally:
        torch.set_num_threads(before)
    want = ops.weighted_sum_reference(inputs, [0.3, -1.7, 2.9])
    assert all(torch.equal(bits(x), bits(want)) for x in found)


def test_an_output_past_the_caches() -> None:
    x = torch.arange(5_000_003, dtype=torch.float32)
    out = torch.empty(5_000_004)[1:]  # not aligned to 16 bytes
    ops.weighted_sum_out([x, x], [1.0, 1.0], out)
    assert torch.equal(out, 2 * x)


@pytest.mark.parametrize("dtype", HALVES)
def test_nan_and_inf_pass_through(dtype: torch.dtype) -> None:
    special = [math.nan, math.inf, -math.inf, 65504.0, -0.0]
    x = torch.tensor(special * 5).to(dtype)
    for out in HALVES:
        for wire in (None, torch.bfloat16, torch.float16):
            got = ops.weighted_sum([x, x], [1.0, 0.5], out, wire)
            want = ops.weighted_sum_reference([x, x], [1.0, 0.5], out, wire)
            assert torch.equal(got.isnan(), want.isnan())
            assert got.isnan().sum() == 5
            assert torch.equal(got.nan_to_num(), want.nan_to_num())


def test_an_input_of_weight_zero_is_not_read() -> None:
    bad = torch.full((9,), math.nan)
    assert torch.equal(
        ops.weighted_sum([bad, torch.ones(9)], [0, 2]), torch.full((9,), 2.0)
    )
    assert torch.equal(ops.weighted_sum([bad], [0.0]), torch.zeros(9))


def test_views_in_place_and_shapes() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(ops.weighted_sum([x.T, x.T], [1, 1]), 2 * x.T)
    assert ops.weighted_sum([x[:0]], [1.0]).shape == (0, 4)
    for k in (2, 9):  # in one group of inputs and in several
        inputs = integers(k, 3000, torch.float32)
        want = ops.weighted_sum_reference(inputs, [1.0] * k)
        ops.weighted_sum_out(inputs, [1.0] * k, inputs[-1])
        assert torch.equal(inputs[-1], want)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.ones(4)
    calls = {
        "no input": lambda: ops.weighted_sum([], []),
        "2 weights for 1": lambda: ops.weighted_sum([x], [1, 2]),
        "one shape": lambda: ops.weighted_sum([x, torch.ones(5)], [1, 2]),
        "one dtype": lambda: ops.weighted_sum([x, x.double()], [1, 2]),
        "one device": lambda: ops.weighted_sum([x, x.to("meta")], [1, 2]),
        "inputs of torch.int64": lambda: ops.weighted_sum([x.long()], [1]),
        "cannot store": lambda: ops.weighted_sum([x], [1], torch.float64),
        "float64": lambda: ops.weighted_sum([x.double()], [1], torch.float32),
        "cannot round": lambda: ops.weighted_sum([x], [1], None, torch.int8),
        "on the way": lambda: ops.weighted_sum([x.double()], [1], None, torch.float16),
        "must be contiguous": lambda: ops.weighted_sum_out(
            [x], [1], torch.ones(8)[::2]
        ),
        "must be": lambda: ops.weighted_sum_out([x], [1], torch.ones(3)),
        "overlaps input 0": lambda: (
            lambda y: ops.weighted_sum_out([y[1:]], [1], y[:-1])
        )(torch.ones(5)),
    }
    for message, call in calls.items():
        with pytest.raises(ConfigError, match=message):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 33])
def test_opcheck(dtype: torch.dtype, size: int) -> None:
    inputs = integers(3, size, dtype)
    out = None if dtype == torch.float64 else torch.bfloat16
    op = torch.ops.codedgrad.weighted_sum.default
    torch.library.opcheck(op, (inputs, [1.0, 2.0, -1.0], out, out))
    into = torch.ops.codedgrad.weighted_sum_out.default
    torch.library.opcheck(into, (inputs, [1.0, 2.0, -1.0], torch.empty_like(inputs[0])))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12
def test_threads_after_a_fork() -> None:
    """A child has none of its parent's threads, and must not wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        x = [torch.arange(3_000_000.0) % 1000 for _ in range(2)]
        expected = 2 * x[0] + x[1]
        assert torch.equal(ops.weighted_sum(x, [2.0, 1.0]), expected)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a hang ends here
            found = ops.weighted_sum(x, [2.0, 1.0]).numpy()  # torch's have none either
            os._exit(0 if (found == expected.numpy()).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(threads)


def test_calls_at_the_same_time() -> None:
    """Python threads share the kernels' threads, or go without."""
    x = [torch.arange(3_000_000.0) % 1000 for _ in range(2)]
    expected = 2 * x[0] + x[1]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(ops.weighted_sum, x, [2.0, 1.0]) for _ in range(24)]
        assert all(torch.equal(c.result(60), expected) for c in calls)


def test_all_threads_calculate_as_the_caller() -> None:
    """Also those of an earlier call, when denormals were kept."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = [torch.full((6_000_000,), 1e-39)]
        kept = ops.weighted_sum(x, [0.5])
        assert torch.set_flush_denormal(True)
        flushed = ops.weighted_sum(x, [0.5])
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert torch.count_nonzero(kept) == kept.numel()
    assert torch.count_nonzero(flushed) == 0
