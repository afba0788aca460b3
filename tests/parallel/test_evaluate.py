"""Evaluation: the sums of one process, whoever is late, and nothing is disturbed."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from numpy.random import mtrand
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from training import Net, dataset, everywhere

import codedgrad
from codedgrad import codes
from codedgrad.errors import ConfigError
from codedgrad.inference.parts import middle_of
from codedgrad.inference.session import session_of
from codedgrad.job import runtime
from codedgrad.job.faults import Faults, Injector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DELAYS = (
    "random:seed=4,probability=0.5,factor=8;random:seed=9,probability=0.3,seconds=0.02"
)


@pytest.fixture
def slowed() -> Iterator[Callable[[str], None]]:
    """Makes workers slow in evaluations, by a plan of faults."""
    session = session_of(runtime.current())

    def slow(text: str) -> None:
        faults = Faults.parse(text, codedgrad.size())
        session.injector = Injector(faults, codedgrad.rank())

    yield slow
    session.injector = None


def model() -> nn.Module:
    torch.manual_seed(3)
    net = Net()
    for _ in range(3):  # batch norm has something to remember
        net(dataset()[:20][0])
    return net


def metrics(net: nn.Module) -> Callable[[Tensor, Tensor], dict[str, Any]]:
    def fn(x: Tensor, y: Tensor) -> dict[str, Any]:
        out = net(x)
        hits = torch.zeros(5, 5, dtype=torch.int64)
        hits.index_put_((y, out.argmax(1)), torch.ones(len(y), dtype=torch.int64), True)
        return {
            "loss": nn.functional.cross_entropy(out, y, reduction="sum"),
            "logits": out.sum(0),
            "hits": hits,
            "count": len(y),
        }

    return fn


def truth(net: nn.Module, batch_size: int) -> dict[str, Any]:
    """The sums of one process, by torch alone, halved as docs/evaluation.md says."""
    x, y = dataset().tensors
    fn = metrics(net)
    net.eval()
    with torch.no_grad():
        found = [
            fn(x[i : i + batch_size], y[i : i + batch_size])
            for i in range(0, len(x), batch_size)
        ]
    net.train()

    def total(name: str, first: int, stop: int) -> Any:
        if stop - first == 1:
            value = torch.as_tensor(found[first][name])
            return value.double() if value.is_floating_point() else value
        middle = middle_of(first, stop)
        return total(name, first, middle) + total(name, middle, stop)

    return {name: total(name, 0, len(found)) for name in found[0]}


def same(got: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return list(got) == list(wanted) and all(
        torch.equal(torch.as_tensor(got[n], dtype=wanted[n].dtype), wanted[n])
        for n in wanted
    )


@pytest.mark.parametrize("batch_size", [2, 7, 40, 500])
def test_the_sums_of_one_process_whoever_is_late(
    slowed: Callable[[str], None], batch_size: int
) -> None:
    """The truth knows no workers, so the sums are the same at any number of them."""
    net = model()
    wanted = truth(net, batch_size)
    for delays in ("", DELAYS):
        slowed(delays or "slow:worker=0,factor=1")
        for _ in range(2):
            got = codedgrad.evaluate(net, dataset(), metrics(net), batch_size)
            assert same(got, wanted)
            assert len(set(everywhere(repr(got)))) == 1


def test_results_by_sample_come_in_order(slowed: Callable[[str], None]) -> None:
    slowed(DELAYS)
    net = model()
    x, y = dataset().tensors

    def fn(a: Tensor, b: Tensor) -> dict[str, Any]:
        out = net(a)
        some = b[b > 2]
        return {
            "out": codedgrad.Each(out),
            "some": codedgrad.Each(some),
            "words": codedgrad.Each([f"label {label}" for label in b.tolist()]),
            "n": len(b),
        }

    got = codedgrad.evaluate(net, (x, y), fn, 8)
    net.eval()
    with torch.no_grad():
        out = torch.cat([net(x[i : i + 8]) for i in range(0, len(x), 8)])
    assert torch.equal(got["out"], out)
    assert torch.equal(got["some"], y[y > 2])
    assert got["words"] == [f"label {label}" for label in y.tolist()]
    assert got["n"] == len(x)
    assert list(got) == ["out", "some", "words", "n"]


def test_large_sums_and_none_at_all_on_some_workers() -> None:
    """More numbers than a row has at first; fewer batches than workers."""
    x = torch.arange(3.0)
    got = codedgrad.evaluate(
        nn.Linear(1, 1), (x,), lambda a: {"m": torch.ones(70, 70) * a, "x": a}, 1
    )
    assert torch.equal(got["m"], torch.full((70, 70), 3.0).double())
    assert got["x"].tolist() == [3.0]


def test_nothing_is_disturbed() -> None:
    """Between two steps of a training, which ends in the bits of one without it."""

    def train(*, evaluating: bool) -> list[Tensor]:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with codedgrad.CodedGradient(net, seed=5) as coded:
            sampler = codedgrad.ShardSampler(dataset(), 40)
            for shards in coded.steps(sampler):
                coded.backward(
                    lambda x, y: nn.functional.cross_entropy(net(x), y), shards
                )
                if evaluating and shards.index < 2:
                    codedgrad.evaluate(net, dataset(), metrics(net), 40)
                torch.rand(3), random.random(), mtrand.rand()
                optimizer.step()
                optimizer.zero_grad()
        drawn = torch.tensor([torch.rand(()), random.random(), mtrand.rand()])
        return [t.clone() for t in net.state_dict().values()] + [drawn]

    random.seed(1), mtrand.seed(1), torch.manual_seed(1)
    with_it = train(evaluating=True)
    random.seed(1), mtrand.seed(1), torch.manual_seed(1)
    for a, b in zip(with_it, train(evaluating=False), strict=True):
        assert torch.equal(a, b)


def test_modes_are_put_back() -> None:
    net = model()
    net.drop.eval()
    modes = [m.training for m in net.modules()]
    seen = codedgrad.evaluate(net, dataset(), lambda *_: {"t": net.training}, 20)
    assert seen == {"t": 0}
    assert [m.training for m in net.modules()] == modes
    got = codedgrad.evaluate(net, dataset(), lambda x, _: {"g": net(x).requires_grad})
    assert got == {"g": 0}


class Slow(Dataset):  # type: ignore[type-arg]
    """Reads samples one by one, with random augmentation, and takes its time."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(1e-4)
        return torch.rand(2) + index, index


def test_loaders_and_samplers() -> None:
    net = nn.Linear(2, 1)

    def fn(x: Tensor, i: Tensor) -> dict[str, Any]:
        return {"x": x.sum(0), "i": i.sum(), "order": codedgrad.Each(i)}

    plain = codedgrad.evaluate(net, Slow(), fn, 8)
    assert plain["i"] == 49 * 25
    assert plain["order"].tolist() == list(range(50))
    sampler = codedgrad.ShardSampler(Slow(), 20, num_workers=1)
    loader = DataLoader(Slow(), batch_size=8, shuffle=True)
    for data, size in ((sampler, 8), (sampler, 8), (loader, None)):
        got = codedgrad.evaluate(net, data, fn, size)
        assert repr(got) == repr(plain)
    for shards in codedgrad.CodedGradient(net).steps(sampler):  # goes on as before
        assert shards.total == 20
        break
    del sampler, loader, shards


def test_a_code_that_lets_nobody_help(slowed: Callable[[str], None]) -> None:
    slowed("slow:worker=0,factor=3")
    net = model()
    code = codes.uncoded(codedgrad.size())
    got = codedgrad.evaluate(net, dataset(), metrics(net), 7, code=code)
    assert same(got, truth(net, 7))


def test_nobody_waits_for_a_slow_worker(slowed: Callable[[str], None]) -> None:
    """Of the last worker's batches all but the first few are computed by others."""
    if codedgrad.size() == 1:
        pytest.skip("nobody to help")
    late = codedgrad.size() - 1
    done: list[int] = []

    class Sleeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.004)
            return x

    net = nn.Sequential(Sleeping(), Sleeping())

    def fn(x: Tensor) -> dict[str, Any]:
        net(x)
        done.append(1)
        return {"n": len(x)}

    x = torch.zeros(16 * codedgrad.size(), 1)
    times = {}
    for name, factor in (("first", 1), ("calm", 1), ("slow", 8)):
        slowed(f"slow:worker={late},factor={factor}")
        done.clear()
        codedgrad.barrier()
        begin = time.monotonic()
        assert codedgrad.evaluate(net, (x,), fn, 1) == {"n": len(x)}
        times[name] = time.monotonic() - begin
    counts = [int(word) for word in everywhere(str(len(done)))]
    assert counts[late] <= 8  # of 16
    assert times["slow"] < 5.0 * times["calm"]  # where waiting takes 8


def test_beside_the_drop_in() -> None:
    """Evaluations between backward and step leave the loop's bits as they are."""
    data = dataset()

    def train(*, evaluating: bool) -> list[Tensor]:
        net = model()
        plain = torch.optim.SGD(net.parameters(), lr=0.1)
        optimizer = codedgrad.DistributedOptimizer(plain, model=net)
        for i in range(3):
            x, y = data[i + codedgrad.rank() :: 4 * codedgrad.size()]
            nn.functional.cross_entropy(net(x), y).backward()
            if evaluating:
                got = codedgrad.evaluate(net, data, metrics(net), 16)
                assert got["count"] == len(data)
            optimizer.step()
            optimizer.zero_grad()
        codedgrad.hvd.detach(optimizer)
        return [t.clone() for t in net.state_dict().values()]

    for a, b in zip(train(evaluating=True), train(evaluating=False), strict=True):
        assert torch.equal(a, b)


def test_a_stopped_worker_stops_nobody(slowed: Callable[[str], None]) -> None:
    """SIGSTOP of a whole process, its engine too: others decode its slice."""
    if codedgrad.size() != 2:
        pytest.skip("two workers will do")
    last = 1
    number = session_of(runtime.current()).number
    slowed(f"stop:worker={last},step={number + 2},seconds=1.5")
    x = torch.zeros(16 * codedgrad.size(), 1)

    def fn(x: Tensor) -> dict[str, Any]:
        time.sleep(0.003)
        return {"n": len(x)}

    times = []
    for _ in range(4):
        begin = time.monotonic()
        assert codedgrad.evaluate(nn.Linear(1, 1), (x,), fn, 1) == {"n": len(x)}
        times.append(time.monotonic() - begin)
    codedgrad.barrier()
    if codedgrad.rank() != last:
        assert times[2] < 1.2


@pytest.mark.parametrize(
    ("data", "fn", "message"),
    [
        ((torch.zeros(0, 2),), lambda *_: {"n": 1}, "the data set is empty"),
        ([], lambda *_: {"n": 1}, "the data set is empty"),
        ((torch.zeros(4, 2),), lambda *_: None, "wanted a dictionary of sums"),
    ],
)
def test_bad_input(data: Any, fn: Any, message: str) -> None:
    if codedgrad.size() > 1:
        pytest.skip("it ends the job, see tests/failures")
    with pytest.raises(ConfigError, match=message):
        codedgrad.evaluate(nn.Linear(1, 1), data, fn)
    # The next call begins anew.
    good = codedgrad.evaluate(nn.Linear(1, 1), (torch.ones(3),), lambda *_: {"n": 1}, 2)
    assert good == {"n": 2}


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_more_bad_input() -> None:
    if codedgrad.size() > 1:
        pytest.skip("it ends the job, see tests/failures")
    net = model()
    three = DataLoader(dataset(), sampler=WeightedRandomSampler([1.0] * 101, 5))
    stream = DataLoader(Stream())
    few = RandomSampler(dataset(), num_samples=50)
    first = SequentialSampler(range(50))
    for data, message in (
        (three, "WeightedRandomSampler"),
        (stream, "chooses its"),
        (DataLoader(dataset(), sampler=few), "RandomSampler"),
        (DataLoader(dataset(), sampler=first), "SequentialSampler"),
    ):
        with pytest.raises(ConfigError, match=message):
            codedgrad.evaluate(net, data, metrics(net))
    with pytest.raises(ConfigError, match="batch_size must be 1 or more, got -1"):
        codedgrad.evaluate(net, dataset(), metrics(net), -1)

    def moves(x: Tensor, y: Tensor) -> dict[str, Any]:
        net.norm.running_mean.add_(1.0)
        return {"n": 1}

    before = net.norm.running_mean.clone()
    with pytest.raises(ConfigError, match=r"has changed 'norm\.running_mean'"):
        codedgrad.evaluate(net, dataset(), moves)
    assert torch.equal(net.norm.running_mean, before)
    assert net.training

    def raises(x: Tensor, y: Tensor) -> dict[str, Any]:
        raise ValueError("no")

    torch.manual_seed(1)
    wanted = torch.rand(())
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="no"):
        codedgrad.evaluate(net, dataset(), raises)
    assert torch.rand(()) == wanted
    assert net.training
