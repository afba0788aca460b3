"""Sources of data in training, with slow workers: nothing is read wrongly or twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from training import everywhere

import codedgrad
from codedgrad import ConfigError, codes
from codedgrad.data import Draw

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
DELAYS = (
    "random:seed=4,probability=0.3,factor=4;random:seed=9,probability=0.1,seconds=0.02"
)


def train(source: Any, *, faults: str = "", check: Any = None, **how: Any) -> str:
    """Train a small model for two epochs; `check` is called with every batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    settings = {"same_bits": True, "patience": 0.0, "faults": faults, **how}
    with codedgrad.CodedGradient(
        model, settings.pop("code", None), **settings
    ) as coded:

        def loss_fn(x: Tensor, y: Tensor) -> Tensor:
            if check is not None:
                check(x, y)
            return (model(x / 100)[:, 0] - y).square().mean()

        for epoch in range(source.epoch, 2):
            source.set_epoch(epoch)
            for shards in coded.steps(source):
                coded.backward(loss_fn, shards)
                optimizer.step()
                optimizer.zero_grad()
        helped = sum(r.redundant_passes for r in coded.record.reports)
    train.helped = helped  # type: ignore[attr-defined]
    found = str([p.tolist() for p in model.parameters()])
    assert len(set(everywhere(found))) == 1
    return found


def slow() -> str:
    return "slow:worker=1,factor=8" if codedgrad.size() > 1 else ""


def stream(shard: int, epoch: int) -> Iterator[Any]:
    numbers = list(range(20 + 3 * shard))  # unequal lengths
    random.shuffle(numbers)
    for n in numbers:
        yield torch.rand(5) + n, 0.1 * shard


@pytest.mark.parametrize("processes", [0, 1])
def test_streams(processes: int) -> None:
    batch = 8 * codedgrad.size()

    def source(**how: Any) -> codedgrad.ShardStream:
        return codedgrad.ShardStream(stream, batch, 5, num_workers=processes, **how)

    want = train(source(), patience=100.0)
    assert train(source(), faults=slow()) == want  # waits
    assert not train.helped  # type: ignore[attr-defined]
    assert train(source(helpers=True), faults=slow()) == want
    assert train(source(helpers=True), faults=DELAYS) == want
    more: Any = {"streams": 2 * codedgrad.size(), "helpers": True}
    assert train(source(**more), patience=100.0) == train(source(**more), faults=slow())


def test_a_stream_that_nobody_else_can_read() -> None:
    def shuffled_anew(shard: int, epoch: int) -> Iterator[Any]:
        for _ in range(100):
            yield torch.full((5,), random.SystemRandom().random()), 0.0

    source = codedgrad.ShardStream(shuffled_anew, 8 * codedgrad.size(), 3, helpers=True)
    if codedgrad.size() == 1:  # where there are several, the job would end
        with pytest.raises(ConfigError, match="use helpers=False"):
            train(source)
    alone = codedgrad.ShardStream(shuffled_anew, 8 * codedgrad.size(), 3)
    assert train(alone)


def made(draw: Draw, generator: torch.Generator) -> Any:
    x = torch.rand(draw.count, 5, generator=generator) + random.random()
    return x, x.sum(1) + draw.step


def test_data_that_passes_make() -> None:
    def source(processes: int) -> Any:
        batch = 8 * codedgrad.size()
        return codedgrad.batches(made, 4, batch, seed=3, num_workers=processes)

    want = train(source(0), patience=100.0)
    assert train(source(0), faults=slow()) == want
    assert train(source(1), faults=DELAYS) == want


class Augmented(Dataset[Any]):
    def __len__(self) -> int:
        return 111

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        noise = torch.rand(4)
        return torch.cat([noise, torch.tensor([float(index)])]), index / 100


@pytest.mark.parametrize("processes", [0, 2])
def test_an_epoch_of_another_number_of_workers_goes_on(processes: int) -> None:
    """Every sample that is left is used, as it would have been, under random delays."""
    n = codedgrad.size()

    def source(batch: int, **words: Any) -> codedgrad.ShardSampler:
        return codedgrad.ShardSampler(Augmented(), batch, seed=7, **words)

    want = {}
    for step in source(111).steps(1):
        want = {int(x[4]): x[:4].tolist() for x in step.fetch(0)[0]}
    before = source(12)  # as some other workers left it
    used: set[int] = set()
    for step in before.steps(3):
        used |= set(step.indices(0, 3).tolist())
        step.note_used()
        if step.index == 2:
            break
    resumed = source(16 * n, num_workers=processes)
    resumed.load_state_dict(before.state_dict())
    seen: set[int] = set()

    def check(x: Tensor, _: Tensor) -> None:
        if resumed.epoch == 0:
            for row in x:
                assert row[:4].tolist() == want[int(row[4])]
            seen.update(map(int, x[:, 4].tolist()))

    code = codes.spread(n, micro=2)
    train(resumed, faults=DELAYS if n > 1 else "", check=check, code=code)
    told = [set(eval(text)) for text in everywhere(str(sorted(seen)))]
    assert set().union(*told) == set(range(111)) - used
    assert resumed.state_dict()["epoch"] == 1
