"""Rows of models on a GPU: one launch a bucket, flags instead of waits (emulated)."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from codedgrad.settings import ExchangeSettings
from ops import emulation
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from codedgrad import codes
from codedgrad.row import devices
from codedgrad.row.device_encoder import DeviceEncoder
from codedgrad.row.encoder import HostEncoder, TorchEncoder, encoder_of
from codedgrad.row.payload import Payload
from codedgrad.row.spans import dense

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="no c++ on PATH")


class Counted:
    """The kernels' module, which counts launches and looks at their tables."""

    def __init__(self) -> None:
        self._module = emulation.module()
        self.INLINE_PIECES = self._module.INLINE_PIECES
        self.tables: list[int] = []

    def encode(self, **arguments: Any) -> None:
        self.tables.append(arguments["table"])
        self._module.encode(**arguments)


class Operations(TorchDispatchMode):
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is on a device, whose memory the host does not read."""
    monkeypatch.setattr(devices, "on_host", lambda _: False)


def payload_of(model: nn.Module, bucket_mb: float = 0.001) -> Payload:
    for p in model.parameters():
        p.grad = torch.randn(p.shape).to(p.dtype)
    payload = Payload(
        model.named_parameters(),
        workers=3,
        settings=ExchangeSettings(bucket_mb=bucket_mb),
    )
    payload.tail.fill(torch.tensor(0.5))
    return payload


def written(encoder: Any, payload: Payload, *, whole: bool, weight: float = 0.3) -> Any:
    """A row, and the flag."""
    row = torch.full((payload.layout.count,), math.nan)
    encoder.begin()
    if whole:
        assert encoder.row(row, weight, ())
    for bucket in range(len(payload.layout.bucket_starts) - 1) if not whole else ():
        assert encoder.flag is None  # not before the last one
        assert encoder.bucket(bucket, row, weight, ())
    return row, float(encoder.flag)


def test_one_launch_for_a_bucket(elsewhere: None) -> None:
    payload = payload_of(nn.Sequential(*(nn.Linear(20, 20) for _ in range(9))))
    kernel = Counted()
    encoder = DeviceEncoder(payload, kernel)
    written(encoder, payload, whole=False)
    buckets = len(payload.layout.bucket_starts) - 1
    assert buckets > 8
    assert kernel.tables == [0] * buckets  # all of them lie in the launch's arguments
    written(encoder, payload, whole=True)
    assert len(kernel.tables) == buckets + 1
    row = torch.empty(payload.layout.count)
    with Operations() as operations:
        encoder.begin()
        for bucket in range(buckets):
            encoder.bucket(bucket, row, 0.3, ())
    assert operations.count <= 3  # a flag, and its place in the row


def test_a_table_is_copied_only_where_an_address_changed(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[int] = []
    put = devices.put
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(200)))
    payload = payload_of(model, 1.0)
    monkeypatch.setattr(devices, "put", lambda *a: (puts.append(1), put(*a)))
    kernel = Counted()
    encoder = DeviceEncoder(payload, kernel)
    first, _ = written(encoder, payload, whole=True)
    again, _ = written(encoder, payload, whole=True)
    assert torch.equal(first, again)
    assert kernel.tables[0] == kernel.tables[1] != 0
    assert len(puts) == 1
    model[7].weight.grad = model[7].weight.grad.clone()
    assert torch.equal(written(encoder, payload, whole=True)[0], first)
    assert len(puts) == 2


def test_a_table_is_read_in_the_stream_in_which_it_was_copied(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stream's kernel may run before that copy, or when its memory is freed."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(200)))
    payload = payload_of(model, 1.0)
    current = [1]
    copied: list[tuple[int, int]] = []  # address and stream
    put = devices.put

    @contextlib.contextmanager
    def selected(_: torch.device) -> Iterator[int]:
        yield current[0]

    def put_and_note(out: torch.Tensor, values: torch.Tensor) -> None:
        put(out, values)
        copied.append((out.data_ptr(), current[0]))

    monkeypatch.setattr(devices, "selected", selected)
    monkeypatch.setattr(devices, "put", put_and_note)
    kernel = Counted()
    encoder = DeviceEncoder(payload, kernel)
    for step, stream in enumerate((1, 1, 2, 2, 1)):
        current[0] = stream
        if step == 3:
            model[7].weight.grad = model[7].weight.grad.clone()
        written(encoder, payload, whole=True)
        assert (kernel.tables[-1], stream) == copied[-1]
    assert [stream for _, stream in copied] == [1, 2, 2, 1]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("make", ["kernel", "torch"])
def test_a_flag_in_the_row(elsewhere: None, make: str, whole: bool) -> None:
    """The first bucket has a NaN; the last element of the row says so, weighted."""
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))
    payload = payload_of(model)
    encoder: Any = TorchEncoder(payload)
    if make == "kernel":
        encoder = DeviceEncoder(payload, emulation.module())
    row, flag = written(encoder, payload, whole=whole, weight=0.25)
    assert (flag, float(row[-1])) == (0.0, 0.0)
    assert not payload.nonfinite(row[payload.layout.gradients :])
    model[3].bias.grad[1] = math.nan
    row, flag = written(encoder, payload, whole=whole, weight=0.25)
    assert (flag, float(row[-1])) == (1.0, 0.25)
    assert payload.nonfinite(row[payload.layout.gradients :])
    assert payload.layout.nonfinite_place == len(row) - payload.layout.gradients - 1
    model[3].bias.grad[1] = 0.0
    payload.tail.fill(torch.tensor(math.inf))
    row, flag = written(encoder, payload, whole=whole, weight=0.25)
    assert (flag, float(row[-1])) == (1.0, 0.25)


def test_the_encoder_of_a_device(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = payload_of(nn.Linear(2, 2))
    name = "codedgrad.ops._ops_cuda"
    monkeypatch.setitem(sys.modules, name, emulation.module())
    assert isinstance(encoder_of(payload), DeviceEncoder)
    monkeypatch.setitem(sys.modules, name, codes)  # as of an older build
    assert isinstance(encoder_of(payload), TorchEncoder)


ORDERS = {
    "channels_last": lambda: torch.randn(4, 3, 5, 5).to(
        memory_format=torch.channels_last
    ),
    "1 x 1 in channels_last": lambda: torch.randn(8, 4, 1, 1).to(
        memory_format=torch.channels_last
    ),
    "transposed": lambda: torch.randn(6, 9).t(),
    "permuted": lambda: torch.randn(3, 4, 5).permute(2, 0, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ORDERS)
def test_dense_memory_orders(
    order: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient in its parameter's order is read where it lies; others are copied."""
    model = nn.Module()
    model.before = nn.Parameter(torch.ones(3, dtype=dtype))  # nothing is aligned
    model.p = nn.Parameter(ORDERS[order]().to(dtype))
    payload = payload_of(model)
    p = model.p
    values = torch.randn(p.shape).to(dtype)
    p.grad = torch.empty_like(p).copy_(values)
    assert p.grad.stride() == p.stride()
    copies: list[int] = []
    monkeypatch.setattr(
        "codedgrad.row.runs.dense", lambda *a: (copies.append(1), dense(*a))[1]
    )
    want, layout = (values.float() * 0.5), payload.layout
    for copied, gradient in enumerate((p.grad, values, values.expand(2, *p.shape)[1])):
        p.grad = gradient
        if copied == 1 and order.startswith("1 x 1"):  # torch's other strides for it
            assert p.grad.stride() != p.stride()
        for make in (HostEncoder, lambda q: DeviceEncoder(q, emulation.module())):
            copies.clear()
            row, _ = _row(make(payload), payload)
            view = layout.view(1, row)
            assert view.stride() == p.stride()
            rounded = want if layout.wire == "float32" else want.to(dtype).float()
            assert torch.equal(view, rounded)
            assert bool(copies) == (copied > 0 and not order.startswith("1 x 1"))


def _row(encoder: Any, payload: Payload) -> Any:
    row = torch.full((payload.layout.count,), math.nan)
    encoder.begin()
    return row, encoder.row(row, 0.5, ())
