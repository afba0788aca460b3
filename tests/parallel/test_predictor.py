"""Queries are answered with the model's own bits, whoever is late or computes them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from sleeping import SLEEP_S, StandIn, model, plain, queries
from torch import Tensor, nn

import codedgrad


def test_answers_have_the_bits_of_the_model() -> None:
    net, asked = model(), queries(8)
    wanted = [plain(net, x) for x in asked]
    with codedgrad.CodedPredictor(net, faults="") as predictor:
        answers = [predictor(x) for x in asked]
    for x, answer, value in zip(asked, answers, wanted, strict=True):
        assert torch.equal(answer.value, value)
        assert answer.exact
        assert not answer.value.requires_grad
        assert answer.doubt.tolist() == [0.0] * len(x)
        assert 0 <= answer.who < codedgrad.size()
        assert answer.seconds > 0


def test_random_delays_change_no_bit() -> None:
    net, asked = model(), queries(20, seed=1)
    wanted = [plain(net, x) for x in asked]
    faults = "random:seed=3,probability=0.4,factor=6"
    with codedgrad.CodedPredictor(net, patience=0, faults=faults) as predictor:
        under_way = [predictor.submit(x) for x in asked]  # all at once
        answers = [predictor.result(query) for query in under_way]
    for answer, value in zip(answers, wanted, strict=True):
        assert torch.equal(answer.value, value)
        assert answer.exact


def test_idle_workers_answer_for_a_slow_one() -> None:
    net, last = model(), codedgrad.size() - 1
    slow = f"slow:worker={last},factor=30"
    with codedgrad.CodedPredictor(net, faults=slow) as predictor:
        if codedgrad.rank() == last:
            asked = queries(12, seed=2)
            answers = [predictor(x) for x in asked]
            wanted = [plain(net, x) for x in asked]
            pairs = zip(answers, wanted, strict=True)
            assert all(torch.equal(a.value, v) for a, v in pairs)
            helped = sum(a.who != last for a in answers)
            assert helped >= 8 or codedgrad.size() == 1
            assert predictor.stats()["helped"] == helped


def test_without_patience_nobody_helps() -> None:
    net, last = model(2), codedgrad.size() - 1
    slow = f"slow:worker={last},factor=5"
    with codedgrad.CodedPredictor(net, patience=None, faults=slow) as predictor:
        answers = [predictor(x) for x in queries(3)]
        assert {a.who for a in answers} == {codedgrad.rank()}
        assert predictor.stats()["asked"] == 0


def test_values_of_several_tensors_travel() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model(2)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
            return {"sum": self.body(x) + y, "both": (x, [y.half()]), "n": len(x)}

    net, last = Pair(), codedgrad.size() - 1
    slow = f"slow:worker={last},factor=30"
    with codedgrad.CodedPredictor(net, faults=slow) as predictor:
        for x in queries(4):
            found = predictor(x, 2 * x).value
            assert torch.equal(found["sum"], plain(net.body, x) + 2 * x)
            assert torch.equal(found["both"][0], x)
            assert found["both"][1][0].dtype == torch.float16
            assert found["n"] == len(x)


def test_the_model_and_the_random_numbers_stay_as_they_are() -> None:
    net = nn.Sequential(model(2), nn.BatchNorm1d(6), nn.Dropout(0.5))
    net[0].eval()
    modes = [m.training for m in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = queries(1)[0]
    torch.manual_seed(5)
    random.seed(5)
    state, python = torch.get_rng_state(), random.getstate()
    with codedgrad.CodedPredictor(net, faults="") as predictor:
        predictor(x)
        assert torch.is_grad_enabled()
        predictor(x)
    assert torch.equal(state, torch.get_rng_state())
    assert python == random.getstate()
    assert modes == [m.training for m in net.modules()]
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    hooks = [h for m in net.modules() for h in m._forward_pre_hooks]
    assert hooks == []


def test_a_model_that_draws_answers_alike_wherever_it_runs() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape) + random.random()

    net, last = nn.Sequential(model(2), Noise()), codedgrad.size() - 1
    x = torch.ones(2, 6)
    found = []
    for slow in ("", f"slow:worker={last},factor=30"):
        state = torch.get_rng_state()
        with codedgrad.CodedPredictor(net, faults=slow) as predictor:
            found.append([predictor(x).value for _ in range(5)])
        assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][1])


# ---- deadlines ----


@pytest.mark.parametrize("doubtful", ["replicate", "wait"])
def test_the_stand_in_answers_what_is_late(doubtful: str) -> None:
    net, stand_in = model(), StandIn(0.1)
    everybody = "slow:factor=1000,worker=0"
    for worker in range(1, codedgrad.size()):
        everybody += f";slow:factor=1000,worker={worker}"
    policy = codedgrad.deadline(0.02, doubtful=doubtful)
    with codedgrad.CodedPredictor(
        net, stand_in, policy=policy, faults=everybody
    ) as predictor:
        for x in queries(3):
            answer = predictor(x)
            assert not answer.exact
            assert torch.equal(answer.value, torch.full((len(x), 6), 7.0))
            assert answer.doubt.tolist() == pytest.approx([0.1] * len(x))
            assert 0.02 <= answer.seconds < 1.0  # the model takes 4 s
            assert answer.who == codedgrad.rank()
        assert predictor.stats()["stand_in"] == 3


def test_what_is_in_time_is_exact_and_what_is_doubtful_too() -> None:
    net = model(2)
    x = queries(1)[0]
    wanted = plain(net, x)
    for stand_in, policy in (
        (StandIn(0.1), codedgrad.deadline(30.0, doubtful="wait")),
        (StandIn(0.9), codedgrad.deadline(0)),
        (StandIn(float("nan")), codedgrad.deadline(0, doubtful="wait")),
        (StandIn(1.5), codedgrad.deadline(0)),  # no doubt at all: an error, logged
    ):
        with codedgrad.CodedPredictor(
            net, stand_in, policy=policy, faults=""
        ) as predictor:
            answers = [predictor(x) for _ in range(3)]
            assert all(a.exact and torch.equal(a.value, wanted) for a in answers)
            errors = predictor.stats()["stand_in_errors"]
        assert errors == (3 if stand_in.doubt == 1.5 else 0)
        assert stand_in.calls == (0 if policy.at_s == 30.0 else 3)


def test_a_deadline_of_0_never_runs_the_model_where_it_is_trusted() -> None:
    net = model(2)
    policy = codedgrad.deadline(0)
    with codedgrad.CodedPredictor(
        net, StandIn(0.5), policy=policy, faults=""
    ) as predictor:
        answers = [predictor(x) for x in queries(5)]
        assert not any(a.exact for a in answers)
        assert predictor.stats()["asked"] == 0


def test_doubtful_queries_are_computed_twice_from_their_start() -> None:
    net = model(2)
    policy = codedgrad.deadline(30.0)
    with codedgrad.CodedPredictor(
        net, StandIn(0.9), policy=policy, patience=100, faults=""
    ) as predictor:
        for x in queries(6):
            assert torch.equal(predictor(x).value, plain(net, x))
        assert predictor.stats()["asked"] == (6 if codedgrad.size() > 1 else 0)


def test_some_queries_of_a_batch_are_answered_before_the_others() -> None:
    class Mixed(StandIn):
        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 100, torch.tensor([0.9, 0.1, 0.2, 0.8])

    net, x = model(), torch.randn(4, 6)
    with codedgrad.CodedPredictor(
        net, Mixed(0.0), policy=codedgrad.deadline(0, doubtful="wait"), faults=""
    ) as predictor:
        parts = list(predictor.parts(predictor.submit(x)))
        assert [rows.tolist() for rows, _ in parts] == [[1, 2], [0, 3]]
        assert torch.equal(parts[0][1].value, x[[1, 2]] + 100)
        assert torch.equal(parts[1][1].value, plain(net, x)[[0, 3]])
        assert [answer.exact for _, answer in parts] == [False, True]
        assert predictor(x).exact  # as one batch, it waits for the model


def test_a_quantile_is_learned() -> None:
    net = model(1)
    with codedgrad.CodedPredictor(
        net, StandIn(0.1), policy=codedgrad.deadline("p50"), faults=""
    ) as predictor:
        x = queries(1)[0]
        assert all(predictor(x).exact for _ in range(20))
        assert SLEEP_S <= predictor.deadline_s < 1.0
        late = [not predictor(x).exact for _ in range(20)]
        while sum(late) < 5:
            assert len(late) < 500
            late.append(not predictor(x).exact)
