"""Rows that go out while the backward runs, at any number of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset
from training import DELAYS, SEED, everywhere

import codedgrad
from codedgrad import codes
from codedgrad.hvd.optimizer import detach

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET_MB = 0.0005
criterion = nn.CrossEntropyLoss()


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 6, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (96,), generator=generator))


class Deep(nn.Module):
    """More buckets than one; `first` may be skipped by samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(6, 6)
        self.layers = nn.Sequential(
            nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.first(x))


def trained(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int = 12,
    micro: int = 2,
    **how: Any,
) -> list[list[float]]:
    """Parameters after training; the same on every worker, or the test fails."""
    code = codes.spread(codedgrad.size(), micro=micro)
    coded = codedgrad.CodedGradient(model, code, seed=SEED, same_bits=True, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sampler = codedgrad.ShardSampler(data(), 48, seed=SEED)
    while coded.step < steps:
        sampler.set_epoch(coded.step // 2)
        for shards in coded.steps(sampler):
            coded.backward(loss, shards)
            optimizer.step()
            optimizer.zero_grad()
    coded.close()
    values = [p.detach().flatten().tolist() for p in model.parameters()]
    assert len(set(everywhere(str(values)))) == 1
    return values


def usual(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: criterion(model(x), y)


def alternating(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """`first` has a gradient on some micro-batches only, of some shards."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        use = bool(x[0, 0] > 0.3)
        return criterion(model(x) if use else model.layers(x), y)

    return loss


def recomputed(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Gradients in portions: a backward inside the backward."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return criterion(checkpoint(model, x, use_reentrant=True), y)

    return loss


def penalised(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A backward of the loss function's own."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        (0.01 * model(x).square().mean()).backward()
        return criterion(model(x), y)

    return loss


def mixed(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """One layer's parameters are bf16."""
    model.first.bfloat16()
    return lambda x, y: criterion(model.layers(model.first(x.bfloat16()).float()), y)


@pytest.mark.parametrize("kind", [usual, alternating, recomputed, penalised, mixed])
def test_overlap_changes_no_bit(kind: Callable[..., Any]) -> None:
    def run(**how: Any) -> list[list[float]]:
        model = Deep()
        return trained(model, kind(model), **how)

    want = run(overlap=False)
    assert run(bucket_mb=BUCKET_MB) == want
    assert run(bucket_mb=BUCKET_MB, faults=DELAYS) == want


# torch itself uses what it deprecates while inductor is loaded.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_models(backend: str) -> None:
    """Traced by torch.compile; inductor also compiles C++, so at one size only."""
    if backend == "inductor" and codedgrad.size() != 2:
        pytest.skip("inductor compiles C++ for every worker: with two of them only")

    def run(**how: Any) -> list[list[float]]:
        torch._dynamo.reset()
        model = Deep()
        fast = torch.compile(model, backend=backend)
        return trained(model, lambda x, y: criterion(fast(x), y), **how)

    want = run(overlap=False)
    assert run(bucket_mb=BUCKET_MB, faults=DELAYS) == want


@pytest.mark.parametrize("passes", [1, 3])
def test_drop_in(passes: int) -> None:
    """The last backward of a step is overlapped, with what the others have left."""

    def run(**how: Any) -> list[list[float]]:
        model = Deep()
        optimizer = codedgrad.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            model.named_parameters(),
            backward_passes_per_step=passes,
            **how,
        )
        x, y = data()[codedgrad.rank() :: codedgrad.size()]
        for step in range(8):
            for turn in range(passes):
                # `first` is used in some passes only, at last in none of a step.
                use = model if (step + turn) % 3 == 0 and step < 6 else model.layers
                criterion(use(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        detach(optimizer)
        values = [p.detach().flatten().tolist() for p in model.parameters()]
        assert len(set(everywhere(str(values)))) == 1
        return values

    assert run(bucket_mb=BUCKET_MB) == run(overlap=False)


def test_more_workers_than_elements() -> None:
    """Slices begin at multiples of 16 elements: some workers own none of a bucket."""

    def run(**how: Any) -> list[list[float]]:
        torch.manual_seed(0)
        model = nn.Linear(6, 3, bias=False)
        return trained(model, usual(model), **how)

    assert run(bucket_mb=1e-6, faults=DELAYS) == run(overlap=False)


def test_buckets_come_before_the_backward_ends() -> None:
    """The engine has sent something when the last hook runs."""
    model = Deep()
    coded = codedgrad.CodedGradient(
        model, codes.uncoded(codedgrad.size(), micro=1), bucket_mb=BUCKET_MB
    )
    posted: list[int] = []
    seen: list[int] = []
    post = coded._exchange.post_bucket
    coded._exchange.post_bucket = lambda step, row, bucket, data: (
        posted.append(bucket),
        post(step, row, bucket, data),
    )
    model.first.weight.register_hook(lambda _: seen.append(len(posted)))
    for shards in coded.steps(codedgrad.ShardSampler(data(), 48)):
        coded.backward(usual(model), shards)
        model.zero_grad()
    buckets = len(coded._payload.layout.bucket_starts) - 1
    assert len(posted) == 2 * buckets
    assert seen[0] == 0  # the first pass learns
    assert seen[1] > buckets + buckets // 2
    coded.close()
