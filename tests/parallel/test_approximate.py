"""Approximate steps: the same bits everywhere, exact where the arrivals cover."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import DELAYS, build, coded, everywhere

import codedgrad
from codedgrad import codes

STEPS = 40
SLOW = 8


def last() -> int:
    return codedgrad.size() - 1


def alone() -> bool:
    return codedgrad.size() == 1


def straggler(factor: float = SLOW) -> str:
    return "" if alone() else f"slow:worker={last()},factor={factor}"


class Job:
    """A small regression whose passes take a few ms; the last worker may be slow."""

    def __init__(self, partition: str = "shuffle", **settings: Any) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 3))
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(480, 12, generator=generator)
        y = x @ torch.randn(12, 3, generator=generator)
        self.sampler = codedgrad.ShardSampler((x, y), 120, partition=partition)
        settings.setdefault("code", codes.uncoded(codedgrad.size(), micro=4))
        settings.setdefault("same_bits", True)
        self.coded = codedgrad.CodedGradient(self.model, **settings)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.losses: list[float] = []
        self.settled: list[Any] = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.model(x) - y).square().mean()

    def run(self, steps: int, loss: Any = None) -> Job:
        epoch = 0
        while self.coded.step < steps:
            self.sampler.set_epoch(epoch)
            epoch += 1
            for shards in self.coded.steps(self.sampler):
                value = self.coded.backward(loss or self.loss, shards)
                self.losses.append(float(value))
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.coded.step == steps:
                    break
        self.settled = list(self.coded.record.estimates)
        return self

    def parameters(self) -> str:
        return str([p.double().sum().item() for p in self.model.parameters()])

    def counts(self) -> dict[str, float]:
        return self.coded._exchange.counters()


def total(value: float) -> float:
    return sum(map(float, everywhere(str(value))))


def test_all_workers_apply_the_same_bits() -> None:
    policy = codedgrad.approximate(math.inf, patience=0.0)
    code = codes.spread(codedgrad.size(), micro=2)
    bits, losses = coded(code, STEPS, faults=DELAYS, policy=policy)
    assert len(set(everywhere(bits))) == 1
    assert all(map(math.isfinite, losses))


def test_with_cover_the_bits_are_the_exact_ones() -> None:
    """A bound that no estimate meets: the arrivals cover, sooner or later."""
    code = codes.spread(codedgrad.size(), micro=2)
    exact = coded(code, STEPS)
    strict = codedgrad.approximate(1e-15, patience=0.0)
    assert coded(code, STEPS, faults=DELAYS, policy=strict) == exact


def test_max_error_0_is_exact() -> None:
    code = codes.spread(codedgrad.size(), micro=2)
    policy = codedgrad.approximate(0.0, patience=0.0)
    assert coded(code, STEPS, faults=DELAYS, policy=policy) == coded(code, STEPS)
    model, _, _ = build(1)
    gradient = codedgrad.CodedGradient(model, policy=policy)
    assert gradient._policy is None
    gradient.close()


@pytest.mark.parametrize("late", ["refresh", "compensate"])
def test_nobody_waits_and_training_converges(late: str) -> None:
    how: Any = {"policy": codedgrad.approximate(math.inf, late=late)}
    how["same_bits"] = late == "compensate"  # or own passes are whole
    job = Job(faults=straggler(40), partition="fixed", **how).run(60)
    assert len(set(everywhere(job.parameters()))) == 1
    assert job.losses[-1] < 0.3 * job.losses[0]
    counts = job.counts()
    if not alone():
        assert total(counts["slices_settled"]) > 0
        assert len(job.settled) > 0
        assert all(0.0 < s.missing < 1.0 for s in job.settled)
        assert all(s.bound >= s.predicted >= 0.0 for s in job.settled)
    job.coded.close()


def test_late_rows_bring_the_truth() -> None:
    """A worker 3 x slow finishes its late passes: its rows teach."""
    job = Job(policy=codedgrad.approximate(math.inf), faults=straggler(3)).run(40)
    known = [s for s in job.settled if s.truth >= 0.0]
    if not alone():
        assert total(len(known)) > 0
        assert total(job.counts()["rows_late"]) > 0
        mean = sum(s.truth for s in known) / max(1, len(known))
        assert math.isfinite(mean)
    job.coded.close()


def test_a_small_max_error_waits_for_more() -> None:
    """What cannot be estimated to 1e-9 is waited for, and then exact."""
    policy = codedgrad.approximate(1e-9)
    exact = Job(faults=straggler(3)).run(12)
    job = Job(policy=policy, faults=straggler(3)).run(12)
    assert job.counts()["slices_settled"] == 0
    assert job.parameters() == exact.parameters()
    job.coded.close()
    exact.coded.close()


def test_noise_is_what_may_be_settled_for() -> None:
    """Shuffled shards: nobody waits where the missing share is within the bound."""
    policy = codedgrad.approximate(max_noise=0.6, patience=0.5)
    job = Job(policy=policy, faults=straggler()).run(40)
    assert len(set(everywhere(job.parameters()))) == 1
    settled = total(job.counts()["slices_settled"])
    assert all(s.missing <= 0.6 and s.noise <= 0.6 for s in job.settled)
    assert all(r.predicted_noise <= 0.6 for r in job.coded.record.reports)
    if codedgrad.size() <= 2:  # one row alone has no spread
        assert settled == 0
    else:
        assert settled > 0
    job.coded.close()


def test_rows_with_nan_are_refused_and_the_step_goes_on() -> None:
    job = Job(policy=codedgrad.approximate(0.5))
    bad = {5, 9}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        value = job.loss(x, y)
        if codedgrad.rank() == last() and job.coded.step in bad:
            value = value * math.nan
        return value

    if alone():  # nobody else to go on from: see tests/step/test_refuse.py
        return
    job.run(12, loss)
    assert all(map(math.isfinite, job.losses))
    assert len(set(everywhere(job.parameters()))) == 1
    counts = job.counts()
    assert counts["rows_refused"] >= 1  # a late one may have been abandoned
    # Settled although nothing else would have come, whatever max_error says.
    assert bad <= {s.step for s in job.settled}
    job.coded.close()


def test_all_zero_gradients_are_no_reason_to_settle() -> None:
    job = Job(policy=codedgrad.approximate(0.9), faults=straggler(3))
    job.run(6, lambda x, y: 0.0 * job.loss(x, y))
    assert job.losses == [0.0] * 6
    assert all(bool((p.isfinite()).all()) for p in job.model.parameters())
    job.coded.close()


def test_a_parameter_without_gradient_stays_so() -> None:
    job = Job(policy=codedgrad.approximate(math.inf), faults=straggler())
    before = job.model[0].weight.detach().clone()
    head = job.model[2]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = job.model[1](job.model[0](x))
        return (head(hidden) - y).square().mean()

    job.run(8, loss)
    assert job.model[0].weight.grad is None
    assert torch.equal(job.model[0].weight, before)
    job.coded.close()


def test_the_checkpoint_holds_what_was_learned() -> None:
    policy = codedgrad.approximate(math.inf)
    job = Job(policy=policy, faults=straggler(3)).run(30)
    saved = job.coded.state_dict()
    again = Job(policy=policy, faults=straggler(3))
    again.coded.load_state_dict(saved)
    assert again.coded.step == 30
    if alone():
        assert set(saved) == {"step"}
        return
    state = saved["decoder"]["state"]
    for restored in filter(None, again.coded._exchange.decoder_states()):
        torch.testing.assert_close(
            torch.tensor(restored), torch.tensor(state), rtol=1e-9, atol=1e-300
        )
    again.run(40)
    job.coded.close()
    again.coded.close()


@pytest.mark.parametrize("what", ["code", "model"])
def test_a_foreign_checkpoint_is_refused(what: str) -> None:
    if alone():
        return
    policy = codedgrad.approximate(0.1)
    job = Job(policy=policy)
    saved = job.coded.state_dict()
    saved["decoder"] = {**saved["decoder"], what: "0" * 64}
    names = everywhere(what)  # all are here before one ends the job
    assert len(names) == codedgrad.size()
    from codedgrad.exchange import settle as estimates

    exchange, code = job.coded._exchange, job.coded.code
    with pytest.raises(codedgrad.ConfigError, match=f"another {what}"):
        estimates.restore(exchange, code, job.coded._payload.layout, saved["decoder"])
    job.coded.close()


def test_same_policy_in_float64_and_narrow_wires() -> None:
    for settings in ({"wire": "bfloat16"}, {"bucket_mb": 0.0005}):
        policy = codedgrad.approximate(math.inf, patience=0.0)
        code = codes.spread(codedgrad.size(), micro=2)
        bits, _ = coded(code, 15, faults=DELAYS, policy=policy, **settings)
        assert len(set(everywhere(bits))) == 1
    torch.manual_seed(0)
    model = nn.Linear(12, 3).double()
    x, y = torch.randn(64, 12).double(), torch.randn(64, 3).double()
    gradient = codedgrad.CodedGradient(
        model, policy=codedgrad.approximate(math.inf), faults=straggler()
    )
    sampler = codedgrad.ShardSampler((x, y), 64)
    for epoch in range(6):
        sampler.set_epoch(epoch)
        for shards in gradient.steps(sampler):
            gradient.backward(lambda a, b: (model(a) - b).square().mean(), shards)
    assert len(set(everywhere(str(model.weight.grad.sum().item())))) == 1
    gradient.close()


def test_exact_steps_cannot_refuse_rows() -> None:
    settings = codedgrad.settings.Settings
    run = codedgrad.settings.RunSettings(on_nonfinite="refuse")
    for policy in ("exact", codedgrad.approximate(0.0)):
        with pytest.raises(codedgrad.ConfigError, match="bounds above 0"):
            settings(policy=policy, run=run).on_nonfinite()
    assert settings(policy=codedgrad.approximate(0.1), run=run).on_nonfinite()
    assert settings(policy=codedgrad.approximate(0.0)).on_nonfinite() == "raise"


def test_settings_are_checked() -> None:
    with pytest.raises(codedgrad.ConfigError, match="max_error"):
        codedgrad.approximate(-1.0)
    for wrong in (-0.25, math.nan):
        with pytest.raises(codedgrad.ConfigError, match="max_noise is a share"):
            codedgrad.approximate(max_noise=wrong)
    with pytest.raises(codedgrad.ConfigError, match="late"):
        codedgrad.approximate(0.1, late="drop")
    with pytest.raises(codedgrad.ConfigError, match="patience"):
        codedgrad.approximate(0.1, patience=-1.0)
