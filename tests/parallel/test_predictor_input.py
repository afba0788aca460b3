"""What a predictor refuses, and what it must not be disturbed by."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
import torch
from sleeping import StandIn, model, plain, queries
from torch import Tensor, nn

import codedgrad
from codedgrad.errors import ConfigError, MismatchError, OverloadError


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


def test_weights_that_change_past_torch_are_told() -> None:
    def replaced(net: nn.Module) -> None:
        net[0].layer.weight = nn.Parameter(torch.zeros(6, 6))

    def assigned(net: nn.Module) -> None:
        state = {name: torch.zeros_like(t) for name, t in net.state_dict().items()}
        net.load_state_dict(state, assign=True)

    def another(net: nn.Module) -> None:
        net[0].layer = nn.Linear(6, 6)

    x = torch.ones(1, 6)
    for change in (replaced, assigned, another):
        net = model(1)
        with codedgrad.CodedPredictor(net, faults="") as predictor:
            assert predictor(x).exact
            change(net)
            with pytest.raises(ConfigError, match="replaced, added or removed"):
                predictor(x)


def test_values_written_by_data_are_found_soon() -> None:
    net, x = model(1), torch.ones(1, 6)
    with codedgrad.CodedPredictor(net, patience=None, faults="") as predictor:
        for _ in range(3):
            predictor(x)
        net[0].layer.weight.data.zero_()
        with pytest.raises(ConfigError, match=r"written past torch"):
            predictor(x)  # the fourth
        with pytest.raises(ConfigError, match=r"written past torch"):
            predictor(x)


def test_a_model_that_draws_for_some_inputs_is_seeded_then() -> None:
    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() < 0:
                noise = torch.rand(len(x), 6) + random.random()
                return x + noise + float(np.random.rand())  # noqa: NPY002
            return x

    found = []
    for _ in range(2):
        with codedgrad.CodedPredictor(Sometimes(), faults="") as predictor:
            predictor(torch.ones(1, 6))
            before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
            found.append(predictor(-torch.ones(1, 6)).value)
            after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
            assert torch.equal(before[0], after[0])
            assert before[1] == after[1]
            assert (before[2][1] == after[2][1]).all()
            assert before[2][2] == after[2][2]
        torch.rand(3)
        random.random()
    assert torch.equal(found[0], found[1])


def test_the_pass_under_way_ends_before_modes_are_put_back() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.begun, self.modes = threading.Event(), list[bool]()

        def forward(self, x: Tensor) -> Tensor:
            self.begun.set()
            time.sleep(1.5)
            self.modes.append(self.training)
            return x

    net = Looks()
    predictor = codedgrad.CodedPredictor(net, patience=None, faults="")
    query = predictor.submit(torch.ones(1, 6))
    assert net.begun.wait(20)
    predictor.__exit__(ValueError, None, None)
    assert net.modes == [False]
    assert net.training
    assert query.done
