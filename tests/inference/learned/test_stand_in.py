"""A stand-in agrees with its model, knows where it does not, and refuses the rest."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError, NonFiniteError
from codedgrad.inference.learned import Distillation, GateSettings, StandIn, distil

QUICK = Distillation(steps=300, width=8, lr=3e-2)
GATE = GateSettings(error=0.05)


def inputs(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def model(outputs: int = 3) -> nn.Sequential:
    """A smooth function of two of six inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.Tanh()),
        nn.Sequential(nn.Linear(16, 16), nn.Tanh()),
        nn.Linear(16, outputs),
    )
    for part in net.parameters():
        part.data *= 2
    return net


def quick(net: nn.Module, **more: object) -> StandIn:
    words = {"held_out": inputs(2000, 1), "gate": GATE, "training": QUICK, **more}
    return distil(net, inputs(2000, 0), 0.9, **words)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are slower on more threads, where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def made() -> StandIn:
    return quick(model())


def test_it_agrees_and_its_trusted_answers_err_as_little_as_asked(
    made: StandIn,
) -> None:
    queries = inputs(4000, 2)
    values, doubts = made(queries)
    agreed = made.agreed(values, model()(queries))
    assert values.shape == (4000, 3)
    assert doubts.shape == (4000,)
    assert float(agreed.mean()) > 0.9
    trusted = doubts <= made.threshold
    assert float(trusted.double().mean()) > 0.7
    assert float(agreed[trusted].mean()) > 0.95
    assert abs(float(doubts.mean()) - float(1 - agreed.mean())) < 0.02


def test_later_exits_agree_more_and_have_gates(made: StandIn) -> None:
    net, queries = model(), inputs(1000, 3)
    exact, features, found = net(queries), queries, []
    for depth in (1, 2):
        features = net[depth - 1](features)
        values, _ = made.exit(depth, features)
        found.append(float(made.agreed(values, exact).mean()))
    assert sorted(made.exits) == [1, 2]
    assert found[0] < found[1]
    assert found[1] > 0.97  # the last stage is linear
    assert made.exits[2].gate.threshold > 0
    with pytest.raises(ConfigError, match="exits after \\[1, 2\\]"):
        made.exit(3, features)


def test_saved_and_loaded_it_answers_with_the_same_bits(
    made: StandIn, tmp_path: Path
) -> None:
    made.save(tmp_path / "stand-in.pt")
    again = StandIn.load(tmp_path / "stand-in.pt", model())
    queries = inputs(100, 4)
    for mine, its in zip(made(queries), again(queries), strict=True):
        assert torch.equal(mine, its)
    assert again.threshold == made.threshold
    assert (again.cost, again.notes, again.shared) == (made.cost, made.notes, 1)
    features = model()[0](queries)
    assert torch.equal(again.exit(1, features)[1], made.exit(1, features)[1])
    trained = model()
    with torch.no_grad():
        trained[0][0].bias[0] += 1e-3
    with pytest.raises(ConfigError, match="weights are not those"):
        StandIn.load(tmp_path / "stand-in.pt", trained)
    torch.save({"format": 0}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="no stand-in"):
        StandIn.load(tmp_path / "other.pt", model())


def test_late_exact_answers_take_trust_away(made: StandIn) -> None:
    one = copy.deepcopy(made)
    one.observe(torch.zeros(400), torch.ones(400, dtype=torch.bool))
    assert one.threshold >= 0
    one.observe(torch.zeros(100), [False] * 100)
    assert one.threshold == -1
    assert one.alarms == 1
    assert "exact only" in repr(one)
    with pytest.raises(ConfigError, match="2 doubts and 1 answers"):
        one.observe([0.1, 0.2], [True])
    with pytest.raises(ConfigError, match="doubts must be between"):
        one.observe([float("nan")], [True])


def test_model_and_random_numbers_are_left_alone() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    made = quick(net, training=Distillation(steps=5, width=4))
    assert torch.equal(torch.rand(3), wanted)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    queries = inputs(5, 5)
    values, _ = made(queries)
    with torch.no_grad():
        net[0].weight.zero_()  # it goes on to imitate the model that it was made of
    assert torch.equal(made(queries)[0], values)


def test_a_bad_query_is_never_trusted(made: StandIn) -> None:
    queries = inputs(2, 6)
    queries[0, 0] = float("nan")
    _, doubts = made(queries)
    assert float(doubts[0]) == 1
    assert float(doubts[1]) < 1
    with pytest.raises(ConfigError, match=r"shape \(6,\)"):
        made(torch.zeros(2, 5))


@pytest.mark.parametrize("flat", [False, True])
def test_numbers_have_a_doubt_too(flat: bool) -> None:
    net = model(1)
    if flat:
        net[2] = nn.Sequential(net[2], nn.Flatten(0))
    made = quick(net, gate=GateSettings(error=0.1))
    queries = inputs(3000, 7)
    values, doubts = made(queries)
    exact = net(queries)
    assert values.shape == exact.shape
    lost = 1 - made.agreed(values, exact)
    assert float(lost.mean()) < 0.1
    assert abs(float(doubts.mean()) - float(lost.mean())) < 0.02
    trusted = doubts <= made.threshold
    assert float(trusted.double().mean()) > 0.5
    assert float(lost[trusted].mean()) <= 0.1


class Whole(nn.Module):
    """A model whose stages cannot be seen."""

    def __init__(self, net: nn.Module, change: object = None) -> None:
        super().__init__()
        self.net = net
        self.change = change

    def forward(self, x: Tensor) -> object:
        out = self.net(x)
        return self.change(out) if callable(self.change) else out


def test_a_model_without_stages_is_imitated_from_its_inputs_and_says_so() -> None:
    with pytest.warns(UserWarning, match="no exits; give stages"):
        made = quick(Whole(model()))
    assert made.shared == 0
    assert made.exits == {}
    assert "shows no stages" in made.notes[0]
    assert made(inputs(10, 8))[0].shape == (10, 3)
    net = Whole(model())
    assert quick(net, stages=list(net.net)).shared == 1  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda out: (out, out), "returns tuple"),
        (lambda out: out.argmax(1), "torch.int64"),
        (lambda out: out[:, None], r"\(256, 1, 3\)"),
        (lambda out: {"logits": out}, "returns dict"),
    ],
)
def test_outputs_that_are_neither_logits_nor_numbers(change: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        quick(Whole(model(), change))


def test_what_else_is_refused() -> None:
    net = model()
    with pytest.raises(NonFiniteError, match="answers 2000 of 2000"):
        quick(Whole(net, lambda out: out * float("nan")))
    with pytest.raises(ConfigError, match="answer otherwise"):
        quick(net, stages=[*net[:2], nn.Sequential(net[2], nn.Tanh())])
    with pytest.raises(ConfigError, match="one after the other"):
        quick(net, stages=[net[2], net[0]])
    with pytest.raises(ConfigError, match="two classes or more"):
        quick(model(1), outputs="logits")
    with pytest.raises(ConfigError, match="narrowest takes"):
        distil(net, inputs(100, 0), 1e-6)
    for cost in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            distil(net, inputs(100, 0), cost)
    with pytest.raises(ConfigError, match="20 inputs or more"):
        distil(net, inputs(3, 0))
    with pytest.raises(ConfigError, match=r"held_out must be inputs as samples"):
        quick(net, held_out=torch.zeros(30, 5))


@pytest.mark.parametrize("shape", [(2, 40), (3, 17, 30), (1, 8, 8)])
def test_series_and_images(shape: tuple[int, ...]) -> None:
    conv = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    net = nn.Sequential(conv(shape[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(60, *shape)
    net(x)
    made = distil(net, x, 0.9, training=Distillation(steps=3, width=4))
    assert made(x)[0].shape == (60, 3)
