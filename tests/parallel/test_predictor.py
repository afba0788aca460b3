"""Queries are answered with the model's own bits, whoever is late or computes them."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import codedgrad
from codedgrad.errors import ConfigError, MismatchError, OverloadError

SLEEP_S = 1e-3


class Sleeping(nn.Module):
    """A layer that takes a while, and no core."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.seconds = SLEEP_S

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.layer(x).tanh()


def model(layers: int = 4) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(*(Sleeping() for _ in range(layers)))


def queries(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + codedgrad.rank())
    return [torch.randn(1 + i % 3, 6, generator=generator) for i in range(count)]


def plain(net: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return net(x)


class StandIn:
    """Doubts what its first feature says; it takes no time."""

    def __init__(self, doubt: float, threshold: float = 0.5) -> None:
        self.doubt, self.threshold = doubt, threshold
        self.calls = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return torch.full((len(x), 6), 7.0), torch.full((len(x),), self.doubt)


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


# ---- bad input ----


def test_workers_whose_weights_differ_are_told() -> None:
    net = model(1)
    if codedgrad.size() > 1 and codedgrad.rank() == codedgrad.size() - 1:
        with torch.no_grad():
            net[0].layer.bias[0] += 1e-6
    if codedgrad.size() == 1:
        codedgrad.CodedPredictor(net).close()
        return
    with pytest.raises(MismatchError, match=r"worker \d has weights"):
        codedgrad.CodedPredictor(net)


def test_a_queue_that_is_full_refuses_and_loses_nothing() -> None:
    net, asked = model(), queries(4)
    wanted = [plain(net, x) for x in asked]
    net[0].seconds = 0.1
    with codedgrad.CodedPredictor(
        net, max_pending=3, patience=None, faults=""
    ) as predictor:
        taken = [predictor.submit(x) for x in asked[:3]]
        with pytest.raises(OverloadError, match="max_pending=3"):
            predictor.submit(asked[3])
        found = [predictor.result(query).value for query in taken]
        assert torch.equal(predictor(asked[3]).value, wanted[3])
        assert predictor.stats()["refused"] == 1
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=False))


def test_errors_and_nan_are_those_of_the_model() -> None:
    net = model(1)
    with codedgrad.CodedPredictor(net, faults="") as predictor:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            predictor(torch.ones(2, 5))
        nan = torch.full((2, 6), float("nan"))
        assert predictor(nan).value.isnan().all()
        assert predictor(nan).exact
        x = queries(1)[0]
        assert torch.equal(predictor(x).value, plain(net, x))
        with pytest.raises(ConfigError, match="different numbers of queries"):
            predictor(torch.ones(2, 6), torch.ones(3, 6))
        with pytest.raises(ConfigError, match="stack those of one shape"):
            predictor([torch.ones(6), torch.ones(5)])


def test_a_model_that_changes_is_refused() -> None:
    net = model(1)
    x = queries(1)[0]
    predictor = codedgrad.CodedPredictor(net, faults="")
    predictor(x)
    net.train()
    with pytest.raises(ConfigError, match="training mode"):
        predictor(x)
    net.eval()
    with torch.no_grad():
        net[0].layer.weight.zero_()
    with pytest.raises(ConfigError, match=r"'0\.layer\.weight' of the model changed"):
        predictor(x)
    predictor.close()
    assert net.training
    with pytest.raises(ConfigError, match="closed"):
        predictor(x)


def test_wrong_arguments_are_told() -> None:
    net = model(1)
    for wrong, words in (
        ({"policy": codedgrad.deadline(1.0)}, "needs a stand_in"),
        ({"policy": "exact"}, r"codedgrad.exact\(\)"),
        ({"patience": -1}, "patience"),
        ({"max_pending": 0}, "max_pending"),
        ({"stand_in": 3}, "stand_in is called"),
        ({"stand_in": lambda x: x}, "threshold"),
    ):
        with pytest.raises(ConfigError, match=words):
            codedgrad.CodedPredictor(net, **wrong)
    with pytest.raises(ConfigError, match="torch module"):
        codedgrad.CodedPredictor(len)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [0, 0.02])
def test_a_stand_in_learns_from_exact_answers(at: float) -> None:
    class Learns(StandIn):
        def __init__(self) -> None:
            super().__init__(0.2)
            self.seen: list[bool] = []

        def agreed(self, values: Tensor, exact: Tensor) -> Tensor:
            return (values == exact).all(dim=1).double()

        def observe(self, doubts: Tensor, agreed: Tensor) -> None:
            assert doubts.tolist() == pytest.approx([0.2] * len(agreed))
            self.seen += agreed.bool().tolist()
            if len(self.seen) >= 4:  # it is always wrong
                self.threshold = -1.0

    net, stand_in, x = model(2), Learns(), torch.zeros(1, 6)
    everybody = ";".join(
        f"slow:worker={w},factor={100 if at else 1}" for w in range(codedgrad.size())
    )
    with codedgrad.CodedPredictor(
        net, stand_in, policy=codedgrad.deadline(at), faults=everybody
    ) as predictor:
        count = 0
        while not predictor(x).exact:
            count += 1
            assert count < 1000
            if count % 16 == 0:  # let the audit end, as under a lower load
                time.sleep(0.25 if at else 0.01)
        assert not any(stand_in.seen)
        assert len(stand_in.seen) >= 4
        assert count >= 64


def test_a_model_that_writes_into_its_inputs_is_computed_here() -> None:
    net, last = nn.Sequential(nn.ReLU(inplace=True), model()), codedgrad.size() - 1
    slow = f"slow:worker={last},factor=5"
    with codedgrad.CodedPredictor(net, patience=0, faults=slow) as predictor:
        for x in queries(6):
            assert torch.equal(predictor(x.clone()).value, plain(net, x.clone()))


def test_inputs_that_change_before_they_are_computed_are_told() -> None:
    net = model()
    with codedgrad.CodedPredictor(net, patience=None, faults="") as predictor:
        x = torch.ones(1, 6)
        first, second = predictor.submit(torch.zeros(1, 6)), predictor.submit(x)
        x += 1
        with pytest.raises(ConfigError, match="were changed"):
            predictor.result(second)
        assert predictor.result(first).exact


def test_modes_are_put_back_with_shared_layers_and_two_predictors() -> None:
    class Shared(nn.Module):
        threshold = 0.5

        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), torch.zeros(len(x))

    net = model(2)
    net[1].eval()
    stand_in = Shared(net[0])
    modes = [m.training for m in (*net.modules(), stand_in)]
    x = queries(1)[0]
    policy = codedgrad.deadline(30)
    first = codedgrad.CodedPredictor(net, stand_in, policy=policy, faults="")
    second = codedgrad.CodedPredictor(net, faults="")
    assert not stand_in.training
    first.close()
    assert torch.equal(second(x).value, plain(net, x))
    second.close()
    assert modes == [m.training for m in (*net.modules(), stand_in)]


def test_an_interrupted_caller_leaves_nothing_behind() -> None:
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() < 0:
                raise KeyboardInterrupt
            return x

    with codedgrad.CodedPredictor(Interrupted(), max_pending=1, faults="") as predictor:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                predictor(-torch.ones(1, 6))
        assert predictor(torch.ones(1, 6)).exact
        assert predictor.stats()["pending"] == 0
