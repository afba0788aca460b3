"""Digests of tensors tell bits apart, wherever and however they lie."""

from __future__ import annotations

import pytest
import torch

from codedgrad.row import digest
from codedgrad.row.digest import tensor_digest

BLOCK = 1 << 15
TYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
    torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
    torch.uint16,
]  # fmt: skip


def some(shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 2, shape, generator=generator).to(kind)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (0,), (2, 3, 4)])
def test_equal_bits_have_equal_digests(
    shape: tuple[int, ...], kind: torch.dtype
) -> None:
    one, two = some(shape, kind), some(shape, kind)
    assert tensor_digest(one) == tensor_digest(two)
    if one.dim() == 2:
        assert tensor_digest(one.t().contiguous().t()) == tensor_digest(one)
        if kind not in (torch.float8_e4m3fn, torch.uint16):
            padded = torch.zeros(4, 9).to(kind)
            padded[1:, 2:7] = one
            assert tensor_digest(padded[1:, 2:7]) == tensor_digest(one)


@pytest.mark.parametrize("count", [1, 3, 2 * BLOCK, 2 * BLOCK + 1, 4 * BLOCK + 5])
def test_any_value_that_differs_is_seen(count: int) -> None:
    values = torch.arange(count, dtype=torch.float32)
    found = {tensor_digest(values)}
    places = sorted({0, count // 2, count - 1, min(count - 1, 2 * BLOCK - 1)})
    for place in places:
        other = values.clone()
        other[place] = torch.nextafter(other[place], torch.tensor(1e9))
        found.add(tensor_digest(other))
    assert len(found) == 1 + len(places)


def test_order_type_and_shape_count() -> None:
    values = torch.arange(100_000.0)
    swapped = values.clone()
    swapped[[3, 4]] = values[[4, 3]]
    blocks = values.clone()
    blocks[: 2 * BLOCK], blocks[2 * BLOCK :] = 0.0, 1.0
    others = [values, swapped, values.view(2, -1), values.int(), blocks, blocks.flip(0)]
    assert len({tensor_digest(t) for t in others}) == len(others)
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))
    nan = torch.tensor([torch.nan])
    assert tensor_digest(nan) == tensor_digest(nan.clone())


def unusual(kind: str, value: float) -> torch.Tensor:
    """A tensor of another layout, of which one value is given."""
    dense = torch.eye(4)
    dense[1, 1] = value
    quantize = torch.quantize_per_tensor
    channels = (torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int64), 0)
    makers = {
        "coo": lambda: dense.to_sparse(),
        "csr": lambda: dense.to_sparse_csr(),
        "csc": lambda: dense.to_sparse_csc(),
        "bsr": lambda: dense.to_sparse_bsr((2, 2)),
        "bsc": lambda: dense.to_sparse_bsc((2, 2)),
        "nested": lambda: torch.nested.nested_tensor([dense, dense[:2]]),
        "jagged": lambda: torch.nested.nested_tensor(
            [dense, dense[:2]], layout=torch.jagged
        ),
        "mkldnn": lambda: dense.to_mkldnn(),
        "quantised": lambda: quantize(dense, 0.1, 0, torch.qint8),
        "by channel": lambda: torch.quantize_per_channel(dense, *channels, torch.qint8),
        "conjugate": lambda: torch.complex(dense, dense).conj(),
        "negative": lambda: torch._neg_view(dense),
    }
    return makers[kind]()


LAYOUTS = [
    "coo", "csr", "csc", "bsr", "bsc", "nested", "jagged", "mkldnn", "quantised",
    "by channel", "conjugate", "negative",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch warns of layouts that it calls new
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_tensor_of_another_layout_is_read(kind: str) -> None:
    one, same, other = (unusual(kind, value) for value in (3.0, 3.0, 5.0))
    assert tensor_digest(one) == tensor_digest(same) != tensor_digest(other)


def test_a_tensor_without_memory() -> None:
    lazy = torch.nn.LazyLinear(3).weight
    metas = [torch.empty(n, device="meta") for n in (3, 4)]
    assert len({tensor_digest(t) for t in (lazy, *metas)}) == 3


def test_rows_of_a_device_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a device, with many blocks in one call, on the CPU."""
    words = torch.randint(-(2**62), 2**62, (130 * digest._HOST_BLOCK + 17,))
    ours = digest._block_sums(words)
    monkeypatch.setattr(digest, "_on_host", lambda _: False)
    assert torch.equal(digest._block_sums(words), ours)
