"""The drop-in's reports, log and end, and loops in which nobody waits for the late."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from parallel.dropin import net, own, same_everywhere, wrapped
from torch import Tensor, nn

import codedgrad
from codedgrad.monitor.runlog import read_run

if TYPE_CHECKING:
    from collections.abc import Iterator

several = pytest.mark.skipif("not codedgrad.size() > 1", reason="one worker")
PASS_S, SLOW, STEPS = 0.01, 10, 40


def train(optimizer: Any, model: nn.Module, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(own(step)).pow(2).mean().backward()
        optimizer.step()


@pytest.fixture
def folder() -> Iterator[str]:
    """One for all workers; not pytest's, whose processes meet where they clean up."""
    with tempfile.TemporaryDirectory() as mine:
        yield codedgrad.broadcast_object(f"{mine}/log")
        codedgrad.barrier()


def test_reports_a_log_and_an_end(folder: str) -> None:
    model = net()
    optimizer: Any = wrapped(model, log=folder)
    assert optimizer.report is None
    with optimizer.closing():
        for step in range(4):
            train(optimizer, model, 1)
            report = optimizer.report
            assert report.step == step
            assert math.isnan(report.loss)
            phases = report.compute_s + report.wait_s + report.backpressure_s
            assert 0.0 < phases < report.step_s + 1e-3
            assert set(report.arrivals_s) <= set(range(codedgrad.size()))
    assert not hasattr(optimizer, "synchronize")
    optimizer.close()  # once will do
    codedgrad.barrier()
    run = read_run(folder)
    assert run.steps.tolist() == [0, 1, 2, 3]
    assert run.workers == codedgrad.size()
    assert not math.isnan(run.measured_s().sum() + run.everybody_s().sum())
    assert len(optimizer.record.reports) == 4
    model(own()).mean().backward()  # a gradient of its own again
    again = wrapped(model)  # it is free
    codedgrad.hvd.detach(again)


class Sleeps(nn.Module):
    """A classifier that takes its time, and has dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(PASS_S)
        out: Tensor = self.layers(x)
        return out


def classes() -> tuple[Tensor, Tensor]:
    """Samples of this worker's classes alone, of four."""
    generator = torch.Generator().manual_seed(codedgrad.rank())
    y = torch.arange(64) % 2 + 2 * (codedgrad.rank() % 2)
    centres = 2.0 * torch.eye(4, 8)
    return centres[y] + 0.3 * torch.randn(64, 8, generator=generator), y


@several
@pytest.mark.parametrize("late", ["refresh", "compensate"])
def test_an_unmodified_loop_waits_for_nobody(late: str) -> None:
    model = Sleeps()
    optimizer: Any = codedgrad.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.2),
        model.named_parameters(),
        model=model,
        policy=codedgrad.approximate(math.inf, late=late),
        faults=f"slow:worker=1,factor={SLOW}",
    )
    x, y = classes()
    batches = itertools.cycle(range(0, 64, 16))
    begin = time.monotonic()
    for at in itertools.islice(batches, STEPS):
        loss = nn.functional.cross_entropy(model(x[at : at + 16]), y[at : at + 16])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codedgrad.barrier()
    assert time.monotonic() - begin < 0.6 * STEPS * SLOW * PASS_S  # at least, to wait
    assert same_everywhere(model)
    reports = optimizer.record.reports
    forwarded = sum(r.fast_forwarded for r in reports)
    if codedgrad.rank() == 1:
        assert forwarded > STEPS / 2
    assert codedgrad.allreduce(sum(r.settled for r in reports), op="sum") > 0
    state = optimizer.state_dict()["param_groups"][0]["codedgrad"]
    assert state["decoder"]["state"]
    flat = nn.utils.parameters_to_vector(model.parameters())
    assert bool(flat.isfinite().all())
    optimizer.close()
    assert "forward" not in vars(model)


@several
def test_what_covers_in_time_is_exact_and_the_state_is_loaded() -> None:
    """A bound that no estimate meets: every worker is waited for."""
    exact, strict = net(), net()
    plain: Any = wrapped(exact)
    train(plain, exact, 5)
    plain.close()
    policy = codedgrad.approximate(1e-15, patience=0.0)
    optimizer: Any = wrapped(strict, policy=policy, faults="slow:worker=0,factor=3")
    train(optimizer, strict, 3)
    state = optimizer.state_dict()
    optimizer.close()
    optimizer = wrapped(strict, policy=policy)
    optimizer.load_state_dict(state)
    for step in (3, 4):
        optimizer.zero_grad()
        strict(own(step)).pow(2).mean().backward()
        optimizer.step()
    for name, value in exact.state_dict().items():
        assert torch.equal(value, strict.state_dict()[name])
    optimizer.close()
