"""Rows from a table of pointers: the CUDA kernel, emulated, has the CPU's bits."""

from __future__ import annotations

import math
import random
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from ops import emulation

from codedgrad.ops.library import NAMES, kernels

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="no c++ on PATH")
HALVES = (torch.bfloat16, torch.float16)
Leaf = list[tuple[int, int, str]]


@pytest.fixture(scope="module")
def cuda() -> Any:
    """As codedgrad.ops._ops_cuda."""
    return emulation.module()


class Case(NamedTuple):
    """Gradients, None for zeros, with what they are encoded into."""

    gradients: list[tuple[Tensor | None, int]]
    sums: list[Tensor]
    weight: float = 1.0
    wire: str = ""
    dtype: torch.dtype = torch.float32
    shift: int = 0  # elements from a multiple of 16 bytes to the run

    def leaf(self) -> Leaf:
        name = NAMES[self.dtype]
        return [
            (0, n, name) if g is None else (g.data_ptr(), n, NAMES[g.dtype])
            for g, n in self.gradients
        ]

    def count(self) -> int:
        return sum(n for _, n in self.gradients)

    def _arguments(self) -> tuple[Tensor, dict[str, Any]]:
        memory = torch.full((self.count() + 24,), 77.0, dtype=self.dtype)
        skip = -memory.data_ptr() % 16 // memory.element_size() + self.shift
        out = memory[skip : skip + self.count()]
        return memory, {
            "weight": self.weight,
            "sums": [s.data_ptr() for s in self.sums],
            "type": NAMES[self.dtype],
            "out": out.data_ptr(),
            "wire": self.wire,
        }

    def by_cpu(self) -> tuple[Tensor, bool]:
        memory, arguments = self._arguments()
        encode = kernels("_ops").encode
        return memory, encode(leaf=self.leaf(), streamed=False, **arguments)

    def by_cuda(self, cuda: Any, *, on_device: bool = False) -> tuple[Tensor, bool]:
        memory, arguments = self._arguments()
        table = kernels("_ops").table_of(self.leaf())
        held = torch.frombuffer(bytearray(table), dtype=torch.uint8)
        flag = torch.zeros((), dtype=self.dtype)
        cuda.encode(
            pieces=table,
            table=held.data_ptr() if on_device else 0,
            flag=flag.data_ptr(),
            stream=0,
            **arguments,
        )
        assert float(flag) in (0.0, 1.0)
        return memory, float(flag) == 0.0


def case(
    sizes: list[int], *, seed: int, deep: int, wire: str, dtype: torch.dtype
) -> Case:
    """Gradients of several types and places, in a run that begins anywhere."""
    chosen = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    gradients: list[tuple[Tensor | None, int]] = []
    for size in sizes:
        kind = chosen.choice([dtype, dtype, torch.float32, *HALVES])
        skip = chosen.choice([0, 0, 1, 2, 5])
        values = torch.randn(size + skip, generator=generator) * 10.0 ** chosen.randint(
            -7, 2
        )
        zeros = chosen.random() < 0.15
        gradients.append((None if zeros else values.to(kind)[skip:], size))
    count, shift = sum(sizes), chosen.randint(0, 3)
    sums = [
        torch.randn(count + 3, generator=generator).to(dtype)[chosen.choice([0, 3]) :][
            :count
        ]
        for _ in range(deep)
    ]
    return Case(gradients, sums, 0.3, wire, dtype=dtype, shift=shift)


SHAPES = {
    "one": [1],
    "small": [3, 1, 7, 2, 64, 1, 1, 16, 5, 33],
    "an embedding beside norms": [*[96, 33] * 30, 20_011, *[64] * 40],
    "large": [12_288, 4096, 8192, 17],
    "empty": [0, 5, 0],
}
TYPES = [
    (torch.float32, ""),
    (torch.float32, "bfloat16"),
    (torch.float32, "float16"),
    (torch.float64, ""),
]


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "wire"), TYPES)
def test_the_bits_of_the_cpu(
    cuda: Any, sizes: list[int], dtype: torch.dtype, wire: str
) -> None:
    for seed, deep in enumerate((0, 1, 2, 4)):
        asked = case(sizes, seed=seed, deep=deep, wire=wire, dtype=dtype)
        want, finite = asked.by_cpu()
        got = asked.by_cuda(cuda)
        assert torch.equal(got[0], want)  # and nothing beside it is written
        assert finite
        assert got[1]


@pytest.mark.parametrize("kind", [torch.float32, *HALVES])
@pytest.mark.parametrize("wire", ["", "bfloat16", "float16"])
def test_against_torch(cuda: Any, kind: torch.dtype, wire: str) -> None:
    """Every half there is, and the rounding of a product and of a sum."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(kind if kind in HALVES else torch.bfloat16).to(kind)
    values = values[values.isfinite() & (values.abs() < 6e4)]
    before = torch.linspace(-3.0, 3.0, len(values))
    narrow = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(wire)
    want = values.float() * 0.7
    want = want if narrow is None else want.to(narrow).float()
    want = want + before
    want = want if narrow is None else want.to(narrow).float()
    n = len(values)
    asked = Case([(values, n)], [before], 0.7, wire)
    for memory, finite in (asked.by_cpu(), asked.by_cuda(cuda)):
        skip = -memory.data_ptr() % 16 // 4
        assert finite
        assert torch.equal(memory[skip : skip + n], want)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 3, 4095, 4096, 9000])
def test_a_flag_for_what_is_not_finite(cuda: Any, bad: float, at: int) -> None:
    for kind in (torch.float32, *HALVES):
        values = torch.ones(9001).to(kind)
        values[at] = bad
        asked = Case([(values, 9001)], [], shift=1)
        assert [asked.by_cpu()[1], asked.by_cuda(cuda)[1]] == [False, False]


def test_a_sum_that_is_not_finite_is_only_seen_in_a_narrow_type(cuda: Any) -> None:
    values, before = torch.full((9,), 3e38), torch.full((9,), 3e38)
    for wire in ("", "bfloat16"):
        asked = Case([(values, 9)], [before], 1.0, wire)
        assert [asked.by_cpu()[1], asked.by_cuda(cuda)[1]] == [wire == ""] * 2


def test_a_table_in_the_devices_memory(cuda: Any) -> None:
    """More tensors than a kernel's arguments hold; also one that would fit."""
    few = case([5] * 7, seed=1, deep=1, wire="", dtype=torch.float32)
    many = case([3, 65] * 200, seed=2, deep=1, wire="", dtype=torch.float32)
    assert len(many.gradients) > cuda.INLINE_PIECES
    for asked in (few, many):
        assert torch.equal(asked.by_cuda(cuda, on_device=True)[0], asked.by_cpu()[0])
    with pytest.raises(ValueError, match="more than 240 pieces have to lie in the dev"):
        many.by_cuda(cuda)


def test_what_is_refused(cuda: Any) -> None:
    wide = torch.ones(4, dtype=torch.float64)
    asked = Case([(wide, 4)], [], 1.0, "bfloat16", dtype=torch.float64)
    with pytest.raises(ValueError, match="or of doubles as they are"):
        asked.by_cuda(cuda)
    deep = Case([(torch.ones(4), 4)], [torch.ones(4)] * 17)
    with pytest.raises(ValueError, match="more than 16 partial sums"):
        deep.by_cuda(cuda)
