"""Loss functions that are not what a helper needs: found, or refused by name.

A helper cuts a late shard into pieces. Where a loss function is another function of a
piece, the truth is the mean of the losses of whole shards, whoever is late.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from parallel.training import everywhere
from test_watch import nobody_ends_the_job as nobody_ends_the_job
from torch import Tensor, nn
from torch.nn import functional as F

import codedgrad
from codedgrad import ConfigError, codes
from codedgrad.hvd.optimizer import detach

if TYPE_CHECKING:
    from collections.abc import Callable

OWN, STEPS = 8, 3  # samples of a worker, steps


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    n = OWN * codedgrad.size() * STEPS
    return torch.randn(n, 5, generator=g), torch.randint(0, 3, (n,), generator=g)


def slow() -> str:
    return "slow:worker=0,factor=6" if codedgrad.size() > 1 else ""


def train(
    model: nn.Module, loss: Callable[..., Any], each: Any = None, **how: Any
) -> codedgrad.CodedGradient:
    n = codedgrad.size()
    code = how.pop("code", None) or codes.spread(n, micro=4)
    sampler = how.pop("sampler", None)
    sampler = sampler or codedgrad.ShardSampler(data(), OWN * n)
    how = {"patience": 0.0, **how}
    with codedgrad.CodedGradient(model, code, **how) as coded:
        for shards in coded.steps(sampler):
            coded.backward(loss, shards)
            if each is not None:
                each(shards)
            model.zero_grad()
    return coded


# ---- pieces of a shard ----


def summed(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="sum")


def by_deviation(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y) / out.detach().std()


def contrastive(out: Tensor, _y: Tensor) -> Tensor:
    return F.cross_entropy(out @ out.T, torch.arange(len(out)))


def mean_of_some(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, ignore_index=0)  # no weight: NaN for some pieces


def by_itself(out: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(out, y)
    return loss / loss.detach()


def several(out: Tensor, y: Tensor) -> Tensor:
    if len(out) < 3:
        raise ValueError("a batch of three or more, please")
    return F.cross_entropy(out, y)


WHOLE = [summed, by_deviation, contrastive, mean_of_some, by_itself, several]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", WHOLE)
def test_helpers_take_whole_shards(
    kind: Callable[..., Tensor], late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain, n = net(), net(), codedgrad.size()

    def compare(shards: Any) -> None:
        for shard in range(n):
            batch = shards.fetch(4 * shard, 4 * shard + 4)
            (kind(plain(batch[0]), batch[1]) / n).backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)
        plain.zero_grad()

    with caplog.at_level(logging.WARNING, "codedgrad"):
        coded = train(
            model, lambda x, y: kind(model(x), y), compare, faults=slow() * late
        )
    if n > 1:
        assert "help=shards" in coded.code.describe()
        told = any("than of its pieces" in r.getMessage() for r in caplog.records)
        assert "True" in everywhere(str(told))


def weighted(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y, ignore_index=0), (y != 0).sum()


def weighted_by_floats(out: Tensor, y: Tensor) -> Any:
    w = 0.1 + 0.01 * y
    return (w * F.cross_entropy(out, y, reduction="none")).sum() / w.sum(), w.sum()


def at_least_one(out: Tensor, y: Tensor) -> Any:
    few = (y == 0).sum().float()
    loss = F.cross_entropy(out, y, reduction="none")[y == 0].sum()
    return loss / few.clamp(min=1.0), few.clamp(min=1.0)


def noisy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.dropout(out, 0.2) + 0.1 * torch.randn_like(out), y)


PIECES = [
    lambda out, y: F.cross_entropy(out, y),
    lambda out, y: (F.cross_entropy(out, y), {"a": (out.argmax(1) == y).sum()}),
    weighted,
    weighted_by_floats,
    noisy,
]


@pytest.mark.parametrize("kind", [*PIECES, at_least_one])
def test_what_helpers_may_cut_is_cut(kind: Callable[..., Any]) -> None:
    model = net()
    coded = train(model, lambda x, y: kind(model(x), y), faults=slow())
    assert kind is at_least_one or "help" not in coded.code.describe()


def test_the_user_has_said_what_pieces_are(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    coded = train(model, lambda x, y: summed(model(x), y), pieces=True)
    assert "help" not in coded.code.describe()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# ---- a metric in the place of the weight ----


def accuracy(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y), (out.argmax(1) == y).float().mean()


def percent(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y), 100.0 * (out.argmax(1) == y).float().mean().item()


def the_loss(out: Tensor, y: Tensor) -> Any:
    loss = F.cross_entropy(out, y)
    return loss, loss.item()


def length(out: Tensor, y: Tensor) -> Any:
    return F.cross_entropy(out, y), out.shape[1]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", [accuracy, percent, the_loss, length])
def test_a_mean_is_no_weight(
    kind: Callable[..., Any], late: bool, nobody_ends_the_job: Any
) -> None:
    model = net()
    if codedgrad.size() == 1:
        return
    with pytest.raises(ConfigError, match=r'return loss, \{"accuracy": accuracy\}'):
        train(model, lambda x, y: kind(model(x), y), faults=slow() * late)


# ---- state ----


class Keeping:
    """A loss function with state, in the ways in which users keep it."""

    def __init__(self) -> None:
        self.mean, self.calls, self.seen = 1.0, 0, [1.0]
        self.tensor = torch.ones(1)
        self.model = net()

    def number(self, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(x), y)
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        return loss / self.mean

    def counter(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(self.model(x), y) * min(1.0, self.calls / 100)

    def in_a_tensor(self, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(x), y)
        self.tensor.data.mul_(0.9).add_(0.1 * loss.detach())
        return loss - self.tensor.sum()

    def in_a_list(self, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(x), y)
        self.seen.append(loss.item())
        return loss / (sum(self.seen) / len(self.seen))

    def of_a_module(self, x: Tensor, y: Tensor) -> Tensor:
        self.model.scale = getattr(self.model, "scale", 1.0) * 0.99
        return F.cross_entropy(self.model(x), y) * self.model.scale

    def meter(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        loss = F.cross_entropy(self.model(x), y)
        self.seen.append(loss.item())
        self.mean = sum(self.seen) / len(self.seen)
        self.tensor = self.tensor + 1
        return loss


READ = ["number", "counter", "in_a_tensor", "in_a_list", "of_a_module"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", READ)
def test_state_that_passes_read_is_refused(
    kind: str, late: bool, nobody_ends_the_job: Any
) -> None:
    keeping = Keeping()
    keeping.model.scale = 1.0
    if codedgrad.size() == 1:
        return
    with pytest.raises(ConfigError, match=r"reads and changes: .*(self|scale)"):
        train(keeping.model, getattr(keeping, kind), faults=slow() * late)


def test_state_that_is_only_written_is_told_and_not_touched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeping = Keeping()
    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(keeping.model, keeping.meter, patience=100.0)  # nobody helps
    assert any("self.calls" in r.getMessage() for r in caplog.records)
    # As many as passes: the rehearsal has left nothing.
    assert keeping.calls == len(keeping.seen) - 1 == int(keeping.tensor) - 1
    assert keeping.calls == STEPS


def test_the_drop_in_tells_of_state_outside_of_buffers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.forwards = getattr(self, "forwards", 0) + 1
            return super().forward(x)

    model = Counting(5, 3)
    model.forwards = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    codedgrad.DistributedOptimizer(optimizer, model=model)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        for _ in range(3):
            F.cross_entropy(model(data()[0][:8]), data()[1][:8]).backward()
            optimizer.step()
    detach(optimizer)
    told = [r for r in caplog.records if "'forwards' of a Counting" in r.getMessage()]
    assert len(told) == 1


# ---- what a rehearsal must not change ----


@pytest.mark.parametrize("pieces", [True, False])
def test_a_batch_that_the_function_changes(pieces: bool) -> None:
    """It takes a key out of its batch, and divides in place: once for a pass."""
    x, y = data()

    def make(items: list[Any]) -> dict[str, Tensor]:
        return {
            "x": torch.stack([a for a, _ in items]),
            "y": torch.stack([b for _, b in items]),
        }

    def loss(batch: dict[str, Tensor]) -> Tensor:
        labels = batch.pop("y")
        return F.cross_entropy(model(batch["x"].div_(2)), labels)

    model, n = net(), codedgrad.size()
    dataset = torch.utils.data.TensorDataset(x.clone(), y)
    sampler = codedgrad.ShardSampler(dataset, OWN * n, shuffle=False, collate_fn=make)
    code = codes.spread(n, micro=4)
    with codedgrad.CodedGradient(model, code, pieces=pieces) as coded:
        for number, shards in enumerate(coded.steps(sampler)):
            coded.backward(loss, shards)
            got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            model.zero_grad()
            own = slice(number * OWN * n, (number + 1) * OWN * n)
            F.cross_entropy(model(x[own] / 2), y[own]).backward()
            want = [p.grad for p in model.parameters()]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
            model.zero_grad()


# ---- own passes that are micro-batches ----


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(5), net()

    def forward(self, x: Tensor) -> Any:
        return self.net(self.norm(x))


def told(loss: Any, caplog: pytest.LogCaptureFixture, **how: Any) -> list[str]:
    """How often each worker was told that micro-batches are another function."""
    model = how.pop("model", None) or net()
    with caplog.at_level(logging.WARNING, "codedgrad"):
        train(model, lambda x, y: loss(model(x), y), same_bits=True, **how)
    said = [r for r in caplog.records if "computes whole shards" in r.getMessage()]
    return everywhere(str(len(said)))


@pytest.mark.parametrize("samples", [OWN, 4])  # 4: a micro-batch is one sample
@pytest.mark.parametrize("kind", [contrastive, summed])
def test_a_loss_of_micro_batches_is_told_once(
    kind: Callable[..., Tensor], samples: int, caplog: pytest.LogCaptureFixture
) -> None:
    n = codedgrad.size()
    sampler = codedgrad.ShardSampler(data(), samples * n)
    assert told(kind, caplog, sampler=sampler) == ["1"] + ["0"] * (n - 1)


def test_a_loss_of_micro_batches_that_are_made_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def made(draw: Any, generator: torch.Generator) -> Any:
        x = torch.randn(draw.count, 5, generator=generator)
        return x, torch.arange(draw.count) % 3

    n = codedgrad.size()
    sampler = codedgrad.batches(made, 2, 16 * n, chunk=2)
    assert told(contrastive, caplog, sampler=sampler) == ["1"] + ["0"] * (n - 1)


@pytest.mark.parametrize("kind", [F.cross_entropy, weighted])
def test_a_mean_of_micro_batches_is_not_told(
    kind: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert "1" not in told(kind, caplog)


@pytest.mark.parametrize(("how", "times"), [({}, "1"), ({"pieces": False}, "0")])
def test_batch_norm_of_micro_batches_is_told_once(
    how: dict[str, Any], times: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = told(F.cross_entropy, caplog, model=Normed(), **how)
    assert found == [times] + ["0"] * (codedgrad.size() - 1)
