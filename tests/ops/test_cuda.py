"""The CUDA kernels against the references; only where there is a GPU."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from ops.cases import COUNTS, DTYPES, SIZES, exact_gram, integers

from codedgrad import ops
from codedgrad.ops.library import NAMES

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch.cuda.is_available() is False"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("codedgrad.ops._ops_cuda") is None,
        reason="not installed with CODEDGRAD_CUDA=1",
    ),
]
HALVES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, 300_001])
def test_integers_are_exact(dtype: torch.dtype, size: int) -> None:
    for k in COUNTS:
        for offset in (0, 1):
            inputs = integers(k, size, dtype, "cuda", offset)
            assert torch.equal(ops.gram(inputs).cpu(), exact_gram(inputs))
            weights = [float(j % 3 - 1) for j in range(k)]
            want = ops.weighted_sum_reference(inputs, weights)
            assert torch.equal(ops.weighted_sum(inputs, weights), want)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("out", HALVES)
@pytest.mark.parametrize("wire", [None, torch.bfloat16, torch.float16])
def test_weighted_sum_has_the_bits_of_the_cpu(
    dtype: torch.dtype, out: torch.dtype, wire: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    for k in (1, 5, 128):
        inputs = [torch.randn(100_003).to(dtype) for _ in range(k)]
        weights = torch.randn(k).tolist()
        want = ops.weighted_sum(inputs, weights, out, wire)
        got = ops.weighted_sum([x.cuda() for x in inputs], weights, out, wire)
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_is_reproducible_within_its_bound(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3_000_001, device="cuda").to(dtype) for _ in range(9)]
    got = ops.gram(inputs)
    assert all(torch.equal(ops.gram(inputs), got) for _ in range(5))
    shifted = [torch.cat([x[:1], x])[1:] for x in inputs]  # not aligned to 16 bytes
    assert torch.equal(ops.gram(shifted), got)
    error = (got - ops.gram_reference(inputs)).abs()
    bound = ops.gram_reference([x.abs() for x in inputs]) * 64 * 2.0**-24
    assert bool((error <= bound).all())


def test_nan_and_the_current_stream() -> None:
    x = torch.ones(1000, device="cuda")
    x[17] = math.nan
    assert ops.weighted_sum([x, x], [1.0, 1.0]).isnan().sum() == 1
    assert bool(ops.gram([x]).isnan().all())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        big = torch.full((1 << 24,), 2.0, device="cuda")
        total = ops.weighted_sum([big, big], [1.0, 1.0])
        norm = ops.gram([total])
    stream.synchronize()
    assert norm.item() == 16.0 * (1 << 24)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tree_sum_has_the_bits_of_torch(dtype: torch.dtype, pinned: bool) -> None:
    kernels = importlib.import_module("codedgrad.ops._ops_cuda")
    torch.manual_seed(0)
    rows = [torch.randn(1_000_003, dtype=dtype) for _ in range(4)]
    rows = [x.pin_memory() if pinned else x.cuda() for x in rows]
    out, copy = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
    if pinned:
        out, copy = out.pin_memory(), copy.pin_memory()
    torch.cuda.synchronize()
    program = [0, 1, -1, 2, 3, -1, -1]
    places = [x.data_ptr() for x in rows]
    ticket = kernels.start_sum(
        device=0,
        is_double=dtype == torch.float64,
        program=program,
        inputs=places,
        out=out.data_ptr(),
        out2=copy.data_ptr(),
        count=out.numel(),
    )
    while (answer := kernels.sum_done(ticket)) == 600:
        pass
    assert answer == 0
    want = (rows[0] + rows[1]) + (rows[2] + rows[3])
    assert torch.equal(out, want)
    assert torch.equal(copy, want)


def test_opcheck() -> None:
    inputs = integers(3, 33, torch.float32, "cuda")
    op = torch.ops.codedgrad.weighted_sum.default
    torch.library.opcheck(op, (inputs, [1.0, 2.0, -1.0], torch.bfloat16, None))
    torch.library.opcheck(torch.ops.codedgrad.gram.default, (inputs,))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wire", ["", "bfloat16", "float16"])
def test_encode_has_the_bits_of_the_cpu(dtype: torch.dtype, wire: str) -> None:
    """An embedding beside small tensors, unaligned; and more than arguments hold."""
    kernel = importlib.import_module("codedgrad.ops._ops_cuda")
    cpu = importlib.import_module("codedgrad.ops._ops")
    for sizes in ([*[96, 33] * 40, 2_000_003, *[64] * 60], [7, 65] * 200):
        torch.manual_seed(len(sizes))
        inputs = [
            torch.randn(n + i % 3)[i % 3 :].to(dtype) for i, n in enumerate(sizes)
        ]
        before, count = torch.randn(sum(sizes)), sum(sizes)
        want, got = torch.empty(count), torch.full((count + 8,), 7.0, device="cuda")
        how = {"weight": 0.3, "type": "float32", "wire": wire}

        def leaf(tensors: list[torch.Tensor]) -> list[tuple[int, int, str]]:
            return [(t.data_ptr(), t.numel(), NAMES[t.dtype]) for t in tensors]

        sums, out = [before.data_ptr()], want.data_ptr()
        assert cpu.encode(leaf(inputs), sums=sums, out=out, streamed=False, **how)
        there, added = [x.cuda() for x in inputs], before.cuda()
        flag, table = torch.zeros((), device="cuda"), cpu.table_of(leaf(there))
        held = torch.frombuffer(bytearray(table), dtype=torch.uint8).cuda()
        kernel.encode(
            pieces=table,
            table=held.data_ptr() if len(sizes) > kernel.INLINE_PIECES else 0,
            sums=[added.data_ptr()],
            out=got[3:].data_ptr(),
            flag=flag.data_ptr(),
            stream=torch.cuda.current_stream().cuda_stream,
            **how,
        )
        assert torch.equal(got[3:-5].cpu(), want)
        assert (got[:3] == 7.0).all()
        assert (got[-5:] == 7.0).all()
        assert float(flag) == 0.0
