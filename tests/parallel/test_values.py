"""Workers whose parameters or data differ are told so, in the step in which they do.

The error comes on all workers, before gradients and buffers are touched, and the job
can go on. Every difference is made on the last worker; with one there is none.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import codedgrad
from codedgrad import codes
from codedgrad.data.seeding import spread_bits
from codedgrad.job import runtime
from codedgrad.step import start
from codedgrad.step.strangers import refuse_wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLES, BATCH = 64, 16
# What the last worker has instead, and what the error names.
SAMPLERS: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "sampler seed = 1, worker 0 has 0"),
    ({"shuffle": False}, "shuffle = False"),
    ({"drop_last": True}, "drop_last = True"),
    ({"batch_size": 32}, "has batch_size = "),
    ({"partition": "fixed"}, "partition = fixed"),
    ({"samples": 60}, "has samples = "),
    ({"epoch": 3}, "epoch = 3, worker 0 has 0"),
    ({"first_step": 1}, "step of the epoch = 1, worker 0 has 0"),
]


def last() -> bool:
    return codedgrad.size() > 1 and codedgrad.rank() == codedgrad.size() - 1


def code() -> codes.Code:
    """A code in which every worker's row counts, so that none differs alone."""
    return codes.uncoded(codedgrad.size(), micro=2)


def batch(factor: int = BATCH) -> int:
    """A multiple of the shards of any number of workers."""
    return factor * codedgrad.size()


def data(samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    samples *= codedgrad.size()
    x, y = torch.randn(samples, 6, generator=g), torch.randn(samples, 1, generator=g)
    return x, y


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=True), nn.Linear(8, 1)
    )


def sampler_of(dataset: Any = None, **settings: Any) -> codedgrad.ShardSampler:
    settings = {"batch_size": BATCH} | settings
    size = batch(settings.pop("batch_size"))
    dataset = data(settings.pop("samples", SAMPLES)) if dataset is None else dataset
    return codedgrad.ShardSampler(dataset, size, **settings)


class Trainer:
    """One model and its exchange."""

    def __init__(self, model: nn.Module | None = None, **settings: Any) -> None:
        self.model = net() if model is None else model
        settings = {"code": code()} | settings
        self.coded = codedgrad.CodedGradient(self.model, **settings)

    def steps(self, sampler: Any, first: int = 0, count: int = 2) -> None:
        for i, shards in enumerate(self.coded.steps(sampler)):
            if first <= i < first + count:
                self.step(shards)

    def step(self, shards: Any) -> None:
        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return ((self.model(x) - y) ** 2).mean()

        self.coded.backward(loss, shards)
        for p in self.model.parameters():
            p.grad = None


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    one = Trainer()
    yield one
    one.coded.close()


def refused(words: str, act: Callable[[], object]) -> None:
    """`act` raises a MismatchError on all workers; nothing if there is one worker."""
    if codedgrad.size() == 1:
        act()
        return
    with pytest.raises(codedgrad.MismatchError) as error:
        act()
    text = str(error.value)
    assert words in text, text
    assert len(set(runtime.current().gather(text.encode(), "in a test"))) == 1


def is_untouched(trainer: Trainer, before: dict[str, torch.Tensor]) -> None:
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize("later", [False, True])
def test_a_sampler_that_differs(*, later: bool) -> None:
    """In the first step, where all compare; and later, by the check bits alone."""
    for given, words in SAMPLERS:
        trainer = Trainer()
        if later:
            trainer.steps(sampler_of())
        before = {n: t.clone() for n, t in trainer.model.state_dict().items()}
        settings = dict(given) if last() else {}
        first, epoch = settings.pop("first_step", 0), settings.pop("epoch", 0)
        sampler = sampler_of(**settings)
        sampler.set_epoch(epoch)
        refused(words, lambda: trainer.steps(sampler, first, 1))  # noqa: B023
        if codedgrad.size() > 1:
            is_untouched(trainer, before)
        trainer.steps(sampler_of())  # the job goes on
        trainer.coded.close()


def test_one_value_of_any_tensor() -> None:
    names = [n for n, t in net().state_dict().items() if t.numel() > 0]
    for name in names:
        model = net()
        if last():
            with torch.no_grad():
                model.state_dict()[name].view(-1)[-1] += 1
        trainer = Trainer(model)
        refused(f"has {name!r} = digest", lambda: trainer.steps(sampler_of()))  # noqa: B023
        codedgrad.broadcast_parameters(model.state_dict(), root_rank=0)
        trainer.steps(sampler_of())
        trainer.coded.close()


def test_the_error_names_the_remedy() -> None:
    torch.manual_seed(codedgrad.rank())
    trainer = Trainer(nn.Linear(6, 1))
    remedy = "codedgrad.broadcast_parameters(model.state_dict(), root_rank=0)"
    refused(remedy, lambda: trainer.steps(sampler_of()))
    trainer.coded.close()


def test_after_a_checkpoint_values_are_compared(trainer: Trainer) -> None:
    trainer.steps(sampler_of())
    state = trainer.coded.state_dict()
    trainer.coded.load_state_dict(state)
    if last():
        with torch.no_grad():
            trainer.model[2].bias += 1e-3
    refused("has '2.bias' = digest", lambda: trainer.steps(sampler_of()))


class Listed(Dataset):
    """Samples that are not tensors of one block."""

    def __init__(self, change: int | None = None, noise: bool = False) -> None:
        self.x, self.y = data()
        self.change, self.noise = change, noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.x[i] + 0.1 * torch.randn(6)  # augmentation, seeded by the step
        if i == self.change:
            x = x + 1e-3
        if self.noise and spread_bits(id(self), len(self.seen())) % 2:
            x = x + 1
        return x, self.y[i]

    def seen(self) -> list[int]:
        self.log = [*getattr(self, "log", []), 1]
        return self.log


def test_one_sample_that_differs(trainer: Trainer) -> None:
    trainer.steps(sampler_of())
    for epoch in range(2):
        x, y = data()
        if last():
            y[5 * epoch + 3] += 1e-3
        sampler = sampler_of(TensorDataset(x, y))
        sampler.set_epoch(epoch)
        refused("the samples of worker(s)", lambda: trainer.steps(sampler, 0, 1))  # noqa: B023
        # Of other data sets, two samples are compared in an epoch.
        drawn = spread_bits(0, epoch, 1) % len(x)
        sampler = sampler_of(Listed(drawn if last() else None))
        sampler.set_epoch(epoch)
        refused("the samples of worker(s)", lambda: trainer.steps(sampler, 0, 1))  # noqa: B023
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    x, y = data()
    sampler = sampler_of((x[order], y[order]) if last() else (x, y))
    refused("Sort files by name", lambda: trainer.steps(sampler, 0, 1))


def test_data_of_its_own_on_every_worker(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    """Random tensors that no two workers share are a benchmark's: a warning."""
    x, y = data()
    noise = torch.Generator().manual_seed(codedgrad.rank())
    x = x + torch.rand(x.shape, generator=noise)
    y = y + torch.rand(y.shape, generator=noise)
    trainer.steps(sampler_of((x, y)), count=2)
    assert (codedgrad.size() == 1) or "in common" in caplog.text
    if codedgrad.size() == 1:
        return
    x[:3], y[:3] = data()[0][:3], data()[1][:3]  # some are shared: others are wrong
    refused("the samples of worker(s)", lambda: trainer.steps(sampler_of((x, y)), 0, 1))


def test_random_data_are_no_difference(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    outer = torch.get_rng_state()
    trainer.steps(sampler_of(Listed()))
    assert torch.equal(torch.get_rng_state(), outer)
    # A dataset with numbers of its own, which may be the same in two readings.
    torch.manual_seed(0)
    for epoch in range(6):
        sampler = sampler_of(Listed(noise=True))
        sampler.set_epoch(epoch)
        trainer.steps(sampler, count=1)
    assert all("another sample in every reading" in r.message for r in caplog.records)


@pytest.mark.parametrize(
    ("settings", "build"),
    [
        ({}, lambda n: codes.uncoded(n, micro=2)),
        ({"wire": "bfloat16"}, lambda n: codes.uncoded(n, micro=2)),
        ({}, lambda n: codes.spread(n, micro=2)),
        ({}, lambda n: codes.cyclic(n, min(1, n - 1))),
        (
            {"policy": codedgrad.approximate(0.5)},
            lambda n: codes.spread(n, micro=2),
        ),
    ],
    ids=["uncoded", "bfloat16", "spread", "cyclic", "approximate"],
)
def test_every_exchange(settings: dict[str, Any], build: Any) -> None:
    """No false alarm in 12 steps, and a difference is seen."""
    trainer = Trainer(code=build(codedgrad.size()), **settings)
    for epoch in range(3):
        sampler = sampler_of()
        sampler.set_epoch(epoch)
        trainer.steps(sampler, count=4)
    sampler = sampler_of(seed=7 if last() else 0)
    sampler.set_epoch(5)
    if trainer.coded.code.name != "uncoded":  # a late worker would differ alone
        trainer.coded.load_state_dict(trainer.coded.state_dict())
    refused("sampler seed = 7", lambda: trainer.steps(sampler, count=4))
    trainer.coded.close()


def test_a_worker_whose_rows_come_too_late(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds alone that it differs; what it tells the others ends the job."""
    trainer.steps(sampler_of())
    ours = trainer.coded._arrangement.check
    told: list[str] = []
    word, tail = ours._word, torch.zeros(trainer.coded._payload.layout.count)
    tail = tail[trainer.coded._payload.layout.gradients :]
    area = trainer.coded._payload.layout.check_area
    from codedgrad.row import checks

    tail[area] = torch.from_numpy(checks.elements(word ^ 1)).float()
    monkeypatch.setattr(type(ours._job), "fail", lambda _, text: told.append(text))
    with pytest.raises(codedgrad.MismatchError, match="of which this step was decoded"):
        ours.verified((tail, tail))
    assert told[0].startswith(runtime.DISAGREE)
    with (
        pytest.raises(codedgrad.MismatchError, match="of which this step was decoded"),
        start.failing_together(ours._job, "failed"),
    ):
        raise codedgrad.WorkerError(told[0])  # as the engine of the others does
    tail[area] = 0.0  # no row at all says nothing
    ours.verified((tail, tail))


def test_a_model_of_another_library() -> None:
    class DistributedDataParallel(nn.Linear):
        pass

    with pytest.raises(codedgrad.ConfigError, match=r"model\.module"):
        refuse_wrapped(DistributedDataParallel(2, 1))


def dropped_in(epochs: tuple[int, ...], change: Any = None, **settings: Any) -> None:
    """Train by the drop-in; `change` is called with the model on the last worker."""
    model, code = net(), codes.uncoded(codedgrad.size())
    processes = settings.pop("processes", None)  # of a DataLoader; None: there is none
    if change is not None and last():
        change(model)
    sampler = codedgrad.ShardBatchSampler(
        settings.pop("dataset", data()), batch(), code, codedgrad.rank(), **settings
    )
    optimizer = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        code=code,
        model=model,
        sampler=sampler,
    )
    try:
        for epoch in epochs:
            sampler.set_epoch(epoch)
            if processes is None:
                batches: Any = ([t[i] for t in sampler.dataset] for i in sampler)
            else:
                batches = DataLoader(
                    sampler.dataset, batch_sampler=sampler, num_workers=processes
                )
            for x, y in batches:
                ((model(x) - y) ** 2).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    finally:
        codedgrad.optimizer.detach(optimizer)


def test_the_drop_in() -> None:
    dropped_in((0, 1))
    refused("sampler seed = 1", lambda: dropped_in((0,), seed=int(last())))
    refused("shuffle = False", lambda: dropped_in((0,), shuffle=not last()))
    refused("epoch = 3, worker 0 has 1", lambda: dropped_in((0, 3 if last() else 1)))
    x, y = data()
    x = x + last()
    refused("the samples of", lambda: dropped_in((0,), dataset=(x, y)))


class Read(Dataset[Any]):
    """Samples that are read one by one; those of the last worker may be others."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __len__(self) -> int:
        return len(data()[0])

    def __getitem__(self, index: int) -> Any:
        x, y = data()
        return x[index] + self.offset, y[index]


@pytest.mark.parametrize("processes", [0, 1])
def test_the_drop_in_compares_samples_that_are_read(
    processes: int, caplog: pytest.LogCaptureFixture
) -> None:
    def run(offset: float) -> None:
        dropped_in((0, 1), dataset=Read(offset), processes=processes)

    with caplog.at_level(logging.WARNING, "codedgrad"):
        run(0.0)
        if processes:  # which would take over what is opened here: nothing is read
            run(float(last()))
        else:
            refused("the samples of", lambda: run(float(last())))
    assert not [r for r in caplog.records if "every reading" in r.getMessage()]

    def moved(model: nn.Module) -> None:
        with torch.no_grad():
            model[1].running_var[3] += 1

    refused("has '1.running_var' = digest", lambda: dropped_in((0,), moved))
    dropped_in((0, 1))
