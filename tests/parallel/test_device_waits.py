"""Before the exchange nobody waits for the device: counted, with a device of threads.

What a torch operation would wait for is counted by the operations that bring a number
to the host. Copies to the device go by `devices.put`, which does not wait.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset
from training import DELAYS, coded, everywhere

import codedgrad
from codedgrad import NonFiniteError, WorkerError, codes
from codedgrad.exchange.engine import EngineExchange
from codedgrad.row import devices
from codedgrad.row.device_encoder import DeviceEncoder

if TYPE_CHECKING:
    from late_device import LateDevice

pytest_plugins = ["on_late_device"]
pytestmark = pytest.mark.usefixtures("fresh_engine")
SAMPLES = 8  # of a worker, in a step
_WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}


class Waits(TorchDispatchMode):
    """Notes what waits for a device from `backward` to the end of the own row."""

    def __init__(self, late: LateDevice, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        self.rows = 0  # own rows that were sent as a whole
        self._open = False
        synchronize, tolist = late.synchronize, Tensor.tolist
        post, post_bucket = EngineExchange.post, EngineExchange.post_bucket

        def noted(event: Any) -> None:
            self._note("synchronize")
            synchronize(event)

        def listed(tensor: Tensor) -> Any:
            self._note("tolist")
            return tolist(tensor)

        def posted(exchange: Any, *arguments: Any) -> None:
            post(exchange, *arguments)
            self._sent()

        def bucket_posted(exchange: Any, step: int, row: int, b: int, d: Any) -> None:
            post_bucket(exchange, step, row, b, d)
            if b == len(exchange._starts) - 2:
                self._sent()

        patch.setattr(late, "synchronize", noted)
        patch.setattr(Tensor, "tolist", listed)
        patch.setattr(EngineExchange, "post", posted)
        patch.setattr(EngineExchange, "post_bucket", bucket_posted)

    def begin(self) -> None:
        self._open = True

    def _sent(self) -> None:
        self._open = False
        self.rows += 1

    def _note(self, what: str) -> None:
        if self._open:
            self.found.append(what)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _WAITING:
            self._note(str(func))
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    """Batch norm and several buckets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 40)
        )
        self.out = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))


def trained(
    steps: int,
    loss_fn: Any,
    *,
    begin: Any = None,
    model: nn.Module | None = None,
    **settings: Any,
) -> codedgrad.CodedGradient:
    """Train on random data; the gradient, which is closed."""
    n = codedgrad.size()
    model = Net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(2)
    count = SAMPLES * n * steps
    data = TensorDataset(
        torch.randn(count, 6, generator=generator),
        torch.randint(0, 3, (count,), generator=generator),
    )
    gradient = codedgrad.CodedGradient(
        model, codes.spread(n, micro=2), patience=50.0, **settings
    )
    with gradient:
        sampler = codedgrad.ShardSampler(data, SAMPLES * n)
        for shards in gradient.steps(sampler):
            if begin is not None:
                begin(gradient)
            gradient.backward(lambda x, y: loss_fn(model, x, y), shards)
            optimizer.step()
            optimizer.zero_grad()
    return gradient


def entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


@pytest.mark.parametrize("same_bits", [False, True])
@pytest.mark.parametrize("bucket_mb", [0.001, None])
def test_no_wait_before_the_exchange(
    far: LateDevice,
    monkeypatch: pytest.MonkeyPatch,
    bucket_mb: float | None,
    same_bits: bool,
) -> None:
    waits = Waits(far, monkeypatch)
    made: list[DeviceEncoder] = []
    init = DeviceEncoder.__init__
    monkeypatch.setattr(
        DeviceEncoder, "__init__", lambda e, *a: (made.append(e), init(e, *a))[1]
    )

    def begin(gradient: codedgrad.CodedGradient) -> None:
        # In the other ones the workers' values are compared, or state is looked for.
        if gradient.step in (3, 5, 6, 7):
            waits.begin()

    with waits:
        trained(8, entropy, begin=begin, bucket_mb=bucket_mb, same_bits=same_bits)
    assert waits.found == []
    assert waits.rows >= 8
    assert made


def test_the_counter_sees_waits(
    far: LateDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = Waits(far, monkeypatch)

    def waiting(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = entropy(model, x, y)
        assert math.isfinite(float(loss.detach()))
        return loss

    with waits:
        trained(4, waiting, begin=lambda g: waits.begin() if g.step == 3 else None)
    assert waits.found == ["aten._local_scalar_dense.default"]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_is_refused_by_all_in_its_step(
    far: LateDevice,
    where: str,
) -> None:
    """Nobody applies it, although its row was sent; its worker says whose it is."""
    rank, model, step = codedgrad.rank(), Net(), 3
    now: list[int] = []

    def nan(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = entropy(model, x, y)
        if now[-1] == step and rank == 0:
            if where == "loss":
                return loss * math.nan
            return (
                loss
                + 0.0
                * model.layers[0]
                .weight.sum()
                .sub(model.layers[0].weight.sum().detach())
                .abs()
                .sqrt()
            )  # 0, with an infinite slope
        return loss

    before: list[Tensor] = []

    def begin(gradient: codedgrad.CodedGradient) -> None:
        now.append(gradient.step)
        before[:] = [p.detach().clone() for p in model.parameters()]

    with pytest.raises((NonFiniteError, WorkerError)) as error:
        trained(6, nan, begin=begin, model=model)
    assert now[-1] == step
    assert all(map(torch.equal, before, model.parameters()))
    text = str(error.value)
    if rank == 0:
        assert f"loss or gradient of step {step}, shard 0 is not finite" in text
    else:
        assert "is not finite" in text


def test_nan_is_let_through_and_counted(far: LateDevice) -> None:
    now: list[int] = []

    def nan(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = entropy(model, x, y)
        return loss * math.nan if now[-1] == 3 and codedgrad.rank() == 0 else loss

    gradient = trained(
        5,
        nan,
        begin=lambda g: now.append(g.step),
        model=nn.Linear(6, 3, bias=False),
        on_nonfinite="continue",
    )
    counts = [int(c) for c in everywhere(str(gradient.nonfinite))]
    assert counts[0] >= 1
    assert not any(counts[1:]) or math.isnan(gradient.report.loss)


@pytest.mark.parametrize("bucket_mb", [0.0005, None])
@pytest.mark.parametrize("wire", [None, "bfloat16"])
def test_the_bits_of_the_host(
    far: LateDevice,
    bucket_mb: float | None,
    wire: str | None,
) -> None:
    code = codes.spread(codedgrad.size(), micro=2, copies=1)
    settings: dict[str, Any] = {"bucket_mb": bucket_mb, "wire": wire}
    got = coded(code, 8, faults=DELAYS, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "runtime_of", lambda _: None)
        patch.setattr(devices, "on_host", lambda _: True)
        assert got == coded(code, 8, **settings)


def test_kernels_of_an_older_build(
    far: LateDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "codedgrad.ops._ops_cuda", codes)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        trained(2, entropy)
    assert "rows are encoded by torch's operations" in caplog.text
