"""What the CUDA kernels compute, without a GPU: run on the processor (emulated/)."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import stubs
import torch
from ops import emulation
from ops.cases import COUNTS, DTYPES, SIZES, exact_gram, integers

from codedgrad import codes, ops
from codedgrad.job import _engine
from codedgrad.ops.library import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="no c++ on PATH")
ADD = -1
COUNT = 20_000  # of a payload
YES = ("set_device", "pin", "unpin", "query")
LARGE = 100_003  # several blocks, and a last pack that is not whole


@pytest.fixture(scope="module")
def cuda() -> Any:
    """As codedgrad.ops._ops_cuda."""
    return emulation.module()


def weighted_sum(
    cuda: Any,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out: torch.dtype,
    wire: torch.dtype | None = None,
) -> torch.Tensor:
    total = torch.full(inputs[0].shape, 77.0, dtype=out)
    places = [x.data_ptr() for x in inputs]
    narrow = "" if wire is None else NAMES[wire]
    cuda.weighted_sum(
        weights=list(weights),
        inputs=places,
        type=NAMES[inputs[0].dtype],
        out=total.data_ptr(),
        out_type=NAMES[out],
        count=total.numel(),
        wire=narrow,
        stream=0,
    )
    return total


def gram(cuda: Any, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    count, k = inputs[0].numel(), len(inputs)
    out = torch.empty(k, k, dtype=torch.float64)
    space = torch.empty(cuda.gram_workspace(count), dtype=torch.float64)
    places = [x.data_ptr() for x in inputs]
    cuda.gram(
        inputs=places,
        type=NAMES[inputs[0].dtype],
        count=count,
        out=out.data_ptr(),
        workspace=space.data_ptr(),
        stream=0,
    )
    return out


def tree_sum(
    cuda: Any, program: list[int], inputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    out, copy = torch.full_like(inputs[0], 77.0), torch.full_like(inputs[0], 78.0)
    ticket = cuda.start_sum(
        device=0,
        is_double=inputs[0].dtype == torch.float64,
        program=program,
        inputs=[x.data_ptr() for x in inputs],
        out=out.data_ptr(),
        out2=copy.data_ptr(),
        count=out.numel(),
    )
    answers = [cuda.sum_done(ticket), cuda.sum_done(ticket)]
    assert answers == [600, 0]
    assert torch.equal(out, copy)
    return out


def reference(program: list[int], inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    stack: list[torch.Tensor] = []
    for token in program:
        if token == ADD:
            right = stack.pop()
            stack.append(stack.pop() + right)
        else:
            stack.append(inputs[token])
    return stack[0]


def test_the_stub_says_what_the_module_has(cuda: Any) -> None:
    assert stubs.differences(cuda, stubs.PACKAGE / "ops" / "_ops_cuda.pyi") == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_are_exact(cuda: Any, dtype: torch.dtype) -> None:
    for size in (*SIZES, LARGE):
        for k in COUNTS if size < LARGE else [3]:
            for offset in (0, 1):
                inputs = integers(k, size, dtype, offset=offset)
                weights = [float(j % 3 - 1) for j in range(k)]
                want = ops.weighted_sum_reference(inputs, weights)
                assert torch.equal(weighted_sum(cuda, inputs, weights, dtype), want)
                if k in (1, 5, 9) and size in (0, 7, 513):
                    assert torch.equal(gram(cuda, inputs), exact_gram(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weighted_sum_has_the_bits_of_the_cpu(cuda: Any, dtype: torch.dtype) -> None:
    halves = [torch.float32, torch.bfloat16, torch.float16]
    torch.manual_seed(0)
    for k in (1, 5, 128):
        inputs = [torch.randn(4099).to(dtype) for _ in range(k)]
        weights = torch.randn(k).tolist()
        for out in halves:
            for wire in (None, torch.bfloat16, torch.float16):
                want = ops.weighted_sum(inputs, weights, out, wire)
                assert torch.equal(weighted_sum(cuda, inputs, weights, out, wire), want)


def test_gram_is_within_its_bound(cuda: Any) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(LARGE) for _ in range(9)]
    error = (gram(cuda, inputs) - ops.gram_reference(inputs)).abs()
    bound = ops.gram_reference([x.abs() for x in inputs]) * 64 * 2.0**-24
    assert bool((error <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tree_sum_adds_in_the_programs_order(cuda: Any, dtype: torch.dtype) -> None:
    generator = random.Random(1)
    torch.manual_seed(0)
    for k in (1, 2, 3, 7, 64, 240):
        program, depth, pushed = [], 0, 0
        while pushed < k or depth > 1:  # a random tree, on a stack of at most 10
            push = pushed < k and depth < 10 and (depth < 2 or generator.random() < 0.5)
            program.append(pushed if push else ADD)
            pushed, depth = pushed + push, depth + (1 if push else -1)
        for size, offset in ((1, 0), (4099, 0), (4099, 1), (LARGE, 0)):
            if k * size > 1 << 20:
                continue
            inputs = [
                torch.randn(size + offset, dtype=dtype)[offset:] for _ in range(k)
            ]
            want = reference(program, inputs)
            assert torch.equal(tree_sum(cuda, program, inputs), want)


@pytest.mark.parametrize(
    "program", [[], [ADD], [0, 1], [0, ADD], [1, 0, ADD], [0, 0, ADD], [0, 2, ADD]]
)
def test_programs_that_are_none(cuda: Any, program: list[int]) -> None:
    x = torch.ones(8)
    with pytest.raises(ValueError, match="CUDA answers 1"):
        tree_sum(cuda, program, [x, x])


def test_stacks_that_are_too_deep(cuda: Any) -> None:
    inputs = [torch.full((8,), float(i)) for i in range(14)]
    deepest = [*range(13), *[ADD] * 12]
    assert float(tree_sum(cuda, deepest, inputs[:13])[0]) == sum(range(13))
    with pytest.raises(ValueError, match="CUDA answers 1"):
        tree_sum(cuda, [*range(14), *[ADD] * 13], inputs)


# Memory may be freed later than its device, in a garbage collection, and calls these.
_FOR_EVER: list[Any] = []


class HostDevice:
    """What `bind_device` takes: memory of the host, and the emulated kernels."""

    def __init__(self, cuda: Any) -> None:
        libc = ctypes.CDLL(None)
        i, size_t = ctypes.c_int, ctypes.c_size_t
        place = ctypes.POINTER(ctypes.c_void_p)
        self.least = 0  # bytes that it can still give

        def allocate(where: Any, size: int) -> int:
            if size < self.least:
                return 2
            return int(libc.posix_memalign(where, 64, size_t(size)))

        self._yes = ctypes.CFUNCTYPE(i)(lambda: 0)
        self._allocate = ctypes.CFUNCTYPE(i, place, size_t)(allocate)
        _FOR_EVER.append((self._yes, self._allocate))
        yes = dict.fromkeys((*YES, "take_error"), self._yes)
        functions = yes | {"allocate": self._allocate, "release": libc.free}
        self.calls = {
            name: int(ctypes.cast(f, ctypes.c_void_p).value or 0)
            for name, f in functions.items()
        }
        self.calls |= {"device": 0, "pin_flags": 3, "not_ready": 600}
        self.calls |= cuda.engine_calls()


class Worker:
    """One engine of several in this process, and its exchange."""

    def __init__(self, engine: Any, device: HostDevice, code: codes.Code, memory: str):
        tree = code.tree
        plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
        engine.bind_device(_engine.DeviceCalls(**device.calls))
        starts = [0, COUNT // 4, COUNT]
        self.engine, self.code = engine, code
        settings = _engine.SessionSettings(
            plan=plan, bucket_starts=starts, window=4, memory=memory
        )
        self.exchange = _engine.Exchange(engine, settings)
        assert self.exchange.use_device_sums(True) == ""
        engine.publish(b"open")
        while engine.gather(1.0)[0] is None:
            pass

    def post(self, step: int, values: Callable[[int], Any]) -> None:
        """The rows of this worker's own shard."""
        rank = self.engine.rank
        for i, row in enumerate(self.code.rows[rank]):
            if row.after < self.code.required[rank]:
                node = self.code.row_node(rank, i)
                data, value = self.exchange.acquire(), values(node)
                ctypes.memmove(data.address, value.ctypes.data, 4 * COUNT)
                self.exchange.post(step, node, data)

    def take(self, step: int) -> Any:
        assert self.exchange.wait(step, 30.0)
        total = self.exchange.take(step)
        return np.frombuffer(ctypes.string_at(total.address, 4 * COUNT), np.float32)


@pytest.mark.parametrize("memory", ["pinned", "device", "little of the device"])
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_engines_decode_with_it(cuda: Any, memory: str, workers: int) -> None:
    code = codes.spread(workers, micro=4, copies=min(2, max(1, workers - 1)))
    tree, device = code.tree, HostDevice(cuda)
    if memory.startswith("little"):  # the slices of others' rows are pinned instead
        device.least, memory = 4 * COUNT, "device"
    leaf = np.random.default_rng(0).normal(size=(code.parts, COUNT)).astype(np.float32)
    hub = _engine.LocalHub(workers, 200, 1)
    engines = [_engine.Engine.over_local(hub, r) for r in range(workers)]

    def value(node: int) -> Any:
        if tree.left[node] < 0:
            return leaf[tree.start[node]]
        return value(int(tree.left[node])) + value(int(tree.right[node]))

    def work(engine: Any) -> Any:
        worker = Worker(engine, device, code, memory)
        for step in range(3):
            assert worker.exchange.begin(step, 30.0)[0]
            worker.post(step, value)
            total = worker.take(step)
        counters = worker.exchange.counters()
        assert counters.slices_on_device == counters.slices_decoded > 0
        return total

    with ThreadPoolExecutor(workers) as pool:
        totals = list(pool.map(work, engines, timeout=60))
        list(pool.map(lambda e: e.stop(5.0), engines))
    assert all(np.array_equal(t, value(int(tree.root))) for t in totals)


def test_all_hear_of_an_engine_without_memory(cuda: Any) -> None:
    code, device = codes.uncoded(2), HostDevice(cuda)
    hub = _engine.LocalHub(2, 0, 1)
    engines = [_engine.Engine.over_local(hub, r) for r in range(2)]
    zeros, both = np.zeros(COUNT, np.float32), threading.Barrier(2)

    def work(engine: Any) -> str:
        worker = Worker(engine, device, code, "device")
        assert worker.exchange.begin(0, 30.0)[0]
        data = worker.exchange.acquire()
        ctypes.memmove(data.address, zeros.ctypes.data, 4 * COUNT)
        both.wait(10.0)
        device.least = 1 << 40  # there is no place for the result
        worker.exchange.post(0, code.row_node(engine.rank, 0), data)
        with pytest.raises(_engine.EngineFailure) as failure:
            worker.exchange.wait(0, 30.0)
        return str(failure.value)

    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(work, engines, timeout=60))
        list(pool.map(lambda e: e.stop(5.0), engines))
    for text in texts:  # of whichever was first here
        assert re.search("the engine of worker . failed: the device answered 2", text)
