"""Every code against a naive transcription of its paper, and one contract for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference import codes
from codedgrad.inference.codes.interpolated import spline
from codedgrad.inference.codes.split import relative_error
from codedgrad.inference.learned import Distillation, distil

K = 4
QUICK = Distillation(steps=60, width=4, lr=1e-2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are slower on more threads, where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Tanh())
    return nn.Sequential(conv, nn.Sequential(nn.Flatten(), nn.Linear(32, 3))).eval()


def queries(groups: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(groups, K, 2, 8, generator=torch.Generator().manual_seed(seed))


def exact(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model(x.flatten(0, 1))
    return found.unflatten(0, x.shape[:2])


def mixed(depth: int) -> codes.Mixed:
    channels = 2 if depth == 0 else 4
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(8 * channels, 3))
    return codes.Mixed(list(network()), depth, K, trunk, (channels, 3))


def stand_in() -> codes.StandInCode:
    model = network()
    made = distil(model, queries(50).flatten(0, 1), 0.9, training=QUICK)
    return codes.StandInCode(model, K, made)


def collage() -> codes.Collage:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3 * K))
    return codes.Collage(network(), K, net)


MAKERS: dict[str, Callable[[], codes.QueryCode]] = {
    "replica": lambda: codes.Replica(network(), K),
    "two replicas": lambda: codes.Replica(network(), K, 2),
    "batch replica": lambda: codes.BatchReplica(network(), K),
    "stand-in": stand_in,
    "parity sum": lambda: codes.ParitySum(network(), K, network()),
    "collage": collage,
    "mixed": lambda: mixed(1),
    "split": lambda: codes.SplitLinear(*codes.split_of(network()), K),
    "Berrut": lambda: codes.Berrut(network(), K, 6),
    "Berrut, systematic": lambda: codes.SystematicBerrut(network(), K, 6),
    "splines": lambda: codes.Splines(network(), K, 6),
}


@pytest.mark.parametrize("name", MAKERS)
def test_availability_says_what_decoding_gives(name: str) -> None:
    """The contract: exact means the model's answer, none means NaN."""
    code, x = MAKERS[name](), queries()
    with torch.no_grad():
        wanted = exact(code.model, x)
        sent = code.encode(x)
        assert len(sent) == code.n
        answers = {w: code.compute(w, part) for w, part in enumerate(sent)}
        for missing in itertools.chain.from_iterable(
            itertools.combinations(range(code.n), size) for size in range(3)
        ):
            here = {w: a for w, a in answers.items() if w not in missing}
            found = code.decode(here)
            assert found.shape == wanted.shape
            for query, says in enumerate(code.availability(set(here))):
                mine, its = found[:, query], wanted[:, query]
                if says == "exact":
                    assert torch.allclose(mine, its, atol=1e-5), (missing, query)
                else:
                    assert bool(mine.isnan().any()) == (says == "none")
    with pytest.raises(ConfigError, match="decode"):
        code.decode({})
    with pytest.raises(ConfigError, match=rf"\[groups, {K}, ...\]"):
        code.encode(x[:, 1:])


@pytest.mark.parametrize(
    ("name", "extra"),
    [("replica", 1.0), ("two replicas", 0.5), ("batch replica", 1.0)],
)
def test_the_work_of_what_is_plain(name: str, extra: float) -> None:
    code = MAKERS[name]()
    assert code.cost(queries()) == pytest.approx(extra)


def berrut_at(z: float, nodes: list[float], values: list[Tensor]) -> Tensor:
    """Equation (7) of arXiv 2009.08327, with sums as they stand there."""
    top, bottom = torch.zeros_like(values[0]), 0.0
    for i, (node, value) in enumerate(zip(nodes, values, strict=True)):
        if abs(z - node) < 1e-12:
            return value
        weight = (-1) ** i / (z - node)
        top, bottom = top + weight * value, bottom + weight
    return top / bottom


@pytest.mark.parametrize("missing", [set(), {2}, {0, 5}])
def test_berrut_is_bacc(missing: set[int]) -> None:
    model, x, n = network().double(), queries().double(), 6
    alpha = [math.cos((2 * j + 1) * math.pi / (2 * K)) for j in range(K)]
    beta = [math.cos(i * math.pi / (n - 1)) for i in range(n)]
    here = [i for i in range(n) if i not in missing]
    with torch.no_grad():
        sent = [berrut_at(b, alpha, list(x.unbind(1))) for b in beta]
        back = [model(sent[i]) for i in here]
        wanted = [berrut_at(a, [beta[i] for i in here], back) for a in alpha]
        found = codes.Berrut(model, K, n).answers(x, missing)
    assert torch.allclose(found, torch.stack(wanted, 1), atol=1e-9)


def test_berrut_of_a_linear_model_with_many_workers_is_near() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x = queries().double()
    with torch.no_grad():
        wanted = exact(model, x)
        errors = [
            relative_error(codes.Berrut(model, K, n).answers(x, {1}), wanted)
            for n in (8, 32, 128)
        ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


def naive_spline(
    at: np.ndarray, x: np.ndarray, y: np.ndarray, smooth: float
) -> np.ndarray:
    """The minimiser written as a + b x + sum c_i |x - x_i|^3 / 12 (Wahba, 1990).

    With sum c_i = sum c_i x_i = 0 the integral of the squared second derivative is
    c^T E c, and the residual at node i is n smooth c_i.
    """
    n = len(x)
    e = np.abs(x[:, None] - x[None, :]) ** 3 / 12
    t = np.stack([np.ones(n), x], 1)
    system = np.block([[e + n * smooth * np.eye(n), t], [t.T, np.zeros((2, 2))]])
    c = np.linalg.solve(system, np.concatenate([y, [0, 0]]))
    kernel = np.abs(at[:, None] - x[None, :]) ** 3 / 12
    return kernel @ c[:n] + c[n] + c[n + 1] * at


@pytest.mark.parametrize("smooth", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_spline_is_the_minimiser(smooth: float, count: int) -> None:
    rng = np.random.default_rng(count)
    x, y = rng.permutation(np.linspace(-1, 0.8, count)), rng.standard_normal(count)
    at = np.linspace(-1.2, 1.2, 31)
    found = spline(at, x, smooth) @ y
    assert np.allclose(found, naive_spline(at, x, y, smooth), atol=1e-7)


def test_splines_are_nercc() -> None:
    """Encode by a regression on (alpha, x), decode by one on (beta, f(u(beta)))."""
    model, x, n = network().double(), queries(1).double(), 7
    alpha = np.cos((2 * np.arange(K) + 1) * np.pi / (2 * K))
    beta, here = np.cos(np.arange(n) * np.pi / (n - 1)), [0, 1, 3, 4, 5, 6]
    rows = x[0].flatten(1).numpy()
    sent = np.stack([naive_spline(beta, alpha, c, 1e-3) for c in rows.T], 1)
    with torch.no_grad():
        back = model(torch.from_numpy(sent).view(n, 2, 8)).numpy()[here]
        wanted = [naive_spline(alpha, beta[here], c, 1e-2) for c in back.T]
        code = codes.Splines(model, K, n, encoding=1e-3, decoding=1e-2)
        found = code.answers(x, {2})[0]
    assert np.allclose(found.numpy(), np.stack(wanted, 1), atol=1e-7)


def test_parity_sum_is_parm() -> None:
    model, parity, x = network(), network(), queries()
    with torch.no_grad():
        parity[1][1].bias += 1
        code = codes.ParitySum(model, K, parity)
        wanted = parity(x[:, 0] + x[:, 1] + x[:, 2] + x[:, 3])
        for i in (0, 1, 3):
            wanted = wanted - model(x[:, i])
        assert torch.allclose(code.answers(x, {2})[:, 2], wanted, atol=1e-5)
        target = sum(model(x[:, i]) for i in range(K))
        squares = (parity(x.sum(1)) - target).square().mean()
        assert torch.allclose(code.distance(x, exact(model, x)), squares)


def test_a_parity_of_a_linear_model_becomes_exact() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    parity = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    code, x = codes.ParitySum(model, K, parity), queries()
    codes.fit(code, queries(300).flatten(0, 1), Distillation(steps=500, lr=0.05))
    with torch.no_grad():
        assert torch.allclose(code.answers(x, {1}), exact(model, x), atol=1e-2)


@pytest.mark.parametrize("images", [False, True])
def test_a_collage_lies_side_by_side(images: bool) -> None:
    x = torch.randn(2, K, 1, 4, 4) if images else torch.randn(2, K, 1, 8)
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3 * K))
    sent = codes.Collage(network(), K, net).redundant(x)
    assert sent.shape == x[:, 0].shape
    for q in range(K):
        if images:
            i, j = q // 2, q % 2
            mine = x[1, q, 0].reshape(2, 2, 2, 2).mean((1, 3))
            assert torch.allclose(
                sent[1, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], mine
            )
        else:
            mine = x[1, q, 0].reshape(2, 4).mean(1)
            assert torch.allclose(sent[1, 0, 2 * q : 2 * q + 2], mine)
    if images:
        with pytest.raises(ConfigError, match="square number"):
            codes.Collage(network(), 3, net).redundant(x[:, :3])


@pytest.mark.parametrize("depth", [0, 1])
def test_mixed_is_what_its_equations_say(depth: int) -> None:
    code, x = mixed(depth), queries()
    with torch.no_grad():
        code.mixers += 0.1 * torch.randn(code.mixers.shape)
        z = 0
        for i in range(K):
            h = x[:, i] if depth == 0 else code.model[0](x[:, i])
            z = z + torch.einsum("dc,gcl->gdl", code.mixers[i], h)
        known = [code.model(x[:, i]) for i in range(K)]
        known[2] = torch.zeros_like(known[2])
        which = torch.zeros(len(x), K)
        which[:, 2] = 1
        wanted = code.decoder(torch.cat([code.trunk(z), *known, which], 1))
        assert torch.allclose(code.answers(x, {2})[:, 2], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["mixed", "collage"])
def test_training_brings_estimates_nearer(name: str) -> None:
    code, x = MAKERS[name](), queries(40)
    assert isinstance(code, codes.Mixed | codes.Collage)
    with torch.no_grad():
        before = float(code.distance(x, exact(code.model, x)))
    codes.fit(code, queries(100, 3).flatten(0, 1), QUICK)
    with torch.no_grad():
        assert float(code.distance(x, exact(code.model, x))) < 0.9 * before


@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_split_code_is_exact_and_costs_its_share(k: int) -> None:
    torch.manual_seed(k)
    body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 128), nn.ReLU())
    code = codes.SplitLinear(body, nn.Linear(128, 1000), k)
    x = torch.randn(8, k, 16)
    with torch.no_grad():
        wanted = exact(code.model, x)
        for missing in range(k):
            found = code.answers(x, {missing})
            assert relative_error(found[:, missing], wanted[:, missing]) <= 1e-6
        share = (16 * 32 + 32 * 128) / (16 * 32 + 32 * 128 + 128 * 1000)
        assert code.cost(x) <= 1 / k + 1.2 * share


def test_what_codes_refuse() -> None:
    with pytest.raises(ConfigError, match="ends in a linear layer"):
        codes.split_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(ConfigError, match="a worker for each"):
        codes.Berrut(network(), 4, 3)
    with pytest.raises(ConfigError, match="must be floats"):
        codes.Berrut(network(), 4, 5).encode(torch.zeros(1, 4, 2, dtype=torch.long))
    with pytest.raises(ConfigError, match="depth is 0 to 1"):
        mixed(2)
    with pytest.raises(ConfigError, match="smoothness"):
        codes.Splines(network(), 4, 5, decoding=-1)
