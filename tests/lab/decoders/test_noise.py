"""The excess noise of an estimate against plain sums, and against what it promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from lab.decoders.conftest import case

from codedgrad.lab.decoders import gram
from codedgrad.lab.decoders.arrivals import Arrivals, Memory
from codedgrad.lab.decoders.candidates import FIXED
from codedgrad.lab.decoders.noise import Noise

COUNT = 2000


def look(noise: Noise, step: int, arrivals: Arrivals, memory: Memory) -> Any:
    """Let `noise` look at a step; return its problem."""
    problem, weights = gram.problem(arrivals, memory)
    u = gram.vectors(arrivals, memory)
    seen = memory.seen > 0
    age = np.where(seen, step - memory.step, 0).astype(float)
    shards = (arrivals.fraction, arrivals.weight, seen, age)
    noise.look(step, gram.tiled(u, u, memory.bounds), shards, weights)
    return problem


def everywhere(choice: Any, problem: Any) -> Any:
    return np.broadcast_to(choice, (len(problem.gram), gram.P))


def squares(rows: Any, weight: Any) -> float:
    """Return the variance of the batch's mean in plain sums."""
    mean = sum(w * r for w, r in zip(weight, rows, strict=True)) / sum(weight)
    total = sum(
        w * float(((r - mean) ** 2).sum()) for w, r in zip(weight, rows, strict=True)
    )
    return total / (len(rows) - 1)


def test_the_formula_in_plain_sums() -> None:
    """Two looks, uneven shards, one missing and one partly here, rescaled."""
    weight = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    plain, memory, truth = case(3, late=(3,), partly={1: 0.5})
    arrivals = Arrivals.of(plain.rows, plain.fraction, weight)
    noise = Noise()
    problem = look(noise, 3, arrivals, memory)
    whole = [0, 2, 4]
    rows, share = truth[whole], weight[whole]
    now = squares(rows, share)
    spread = (now + squares(memory.last[whole], share)) / 2
    in_time = squares(rows - memory.last[whole], share) / 2
    assert noise.bias == pytest.approx(max(1.0, spread / in_time))
    rho = 0.25 + 0.15
    here, each = share.sum(), share.mean()
    left = np.mean(
        [
            ((truth[j] - truth[o].T @ weight[o] / weight[o].sum()) ** 2).sum()
            for j in whole
            for o in [[i for i in whole if i != j]]
        ]
    )
    n = spread / noise.bias
    offset = left - now / noise.bias * (1 / each + 1 / (here - each))
    expected = rho**2 * (n / rho + n / here + offset)
    found = noise.excess(problem, everywhere(FIXED["rescale"], problem))
    assert found.expected == pytest.approx(expected)
    assert found.noise == pytest.approx(spread / noise.bias)
    assert found.credit == pytest.approx(0.0, abs=1e-12)
    assert found.share == pytest.approx(expected * noise.bias / spread)
    # All from the running average: nothing of this step's rows is in it.
    momentum = noise.excess(problem, everywhere(FIXED["momentum"], problem))
    left = np.mean([((truth[j] - memory.average) ** 2).sum() for j in whole])
    expected = rho**2 * (n / rho + left - now / noise.bias / each)
    assert momentum.expected == pytest.approx(expected)
    assert momentum.credit == pytest.approx(2 * rho)


def remembered(
    steps: int, k: int, offsets: float, seed: int = 0, count: int = COUNT
) -> tuple[Memory, Any, Any]:
    """Return a memory of calm steps, and a draw of the next one's shards."""
    random = np.random.default_rng(seed)
    own = offsets * random.standard_normal((k, count))
    mean = random.standard_normal(count)
    memory = Memory(k, np.array([0, count // 2, count]))

    def draw() -> Any:
        return mean + own + random.standard_normal((k, count))

    for step in range(steps):
        rows = draw()
        for j in range(k):
            memory.shard(j, step, rows[j])
        memory.result(rows.mean(axis=0))
    return memory, draw, mean + own.mean(axis=0)


@pytest.mark.parametrize("k", [4, 8])
def test_shuffled_shards_have_the_law_of_counting(k: int) -> None:
    """The mean of k - 1 of k shards has rho / (1 - rho) more noise, whatever k."""
    memory, draw, _ = remembered(3, k, 0.0)
    rows = draw()
    fraction = np.ones(k)
    fraction[-1] = 0.0
    noise = Noise()
    problem = look(noise, 3, Arrivals.of(rows, fraction), memory)
    found = noise.excess(problem, everywhere(FIXED["rescale"], problem))
    assert found.share == pytest.approx(1 / (k - 1), rel=0.1)
    assert found.noise == pytest.approx(COUNT / k, rel=0.1)


@pytest.mark.parametrize("name", ["rescale", "momentum", "saga_mean"])
def test_the_excess_is_that_of_the_distance_to_the_gradient_of_all_data(
    name: str,
) -> None:
    """E|g^ - m|^2 = (1 + excess) E|g - m|^2, over many draws of the batch."""
    k, trials = 4, 200
    told, of_batch, of_estimate = [], [], []
    for seed in range(trials):
        memory, draw, m = remembered(8, k, 0.0, seed, count=64)
        rows = draw()
        arrivals = Arrivals.of(rows, [1.0, 1.0, 1.0, 0.0])
        noise = Noise()
        problem = look(noise, 8, arrivals, memory)
        c = everywhere(FIXED[name], problem)
        _, weights = gram.problem(arrivals, memory)
        v = weights.T @ gram.vectors(arrivals, memory)
        guess = arrivals.total() + problem.rho * (FIXED[name] @ v)
        found = noise.excess(problem, c)
        told.append((found.share + found.credit) * found.noise - found.credit * 16)
        of_batch.append(((rows.mean(axis=0) - m) ** 2).sum())
        of_estimate.append(((guess - m) ** 2).sum())
    assert np.mean(of_batch) == pytest.approx(16, rel=0.05)
    excess = np.mean(of_estimate) / np.mean(of_batch) - 1.0
    assert np.mean(told) / 16 == pytest.approx(excess, abs=0.12)


def test_what_shards_hold_is_no_noise() -> None:
    """With offsets of their own the spread is five times the noise: that is bias."""
    memory, draw, _ = remembered(3, 4, 2.0)
    arrivals = Arrivals.of(draw(), [1.0, 1.0, 1.0, 0.0])
    noise = Noise()
    problem = look(noise, 3, arrivals, memory)
    assert noise.bias == pytest.approx(5.0, rel=0.15)
    c = everywhere(FIXED["rescale"], problem)
    assert noise.excess(problem, c).share == pytest.approx(11 / 6, rel=0.2)
    assert noise.lean(problem, c, 0.25)[1].share > 0.25
    # Memory of the missing knows its offset.
    saga = noise.excess(problem, everywhere(FIXED["stale_mean"], problem))
    assert saga.share < 0.25


def test_what_cannot_be_told_is_infinite() -> None:
    noise = Noise()
    memory, draw, _ = remembered(0, 4, 0.0)
    rows = draw()
    three = Arrivals.of(rows, [1.0, 1.0, 1.0, 0.0])
    for arrivals, why in (
        (three, "no memory: noise and bias cannot be told apart"),
        (Arrivals.of(rows, [1.0, 0.0, 0.0, 0.0]), "one shard has no spread"),
        (Arrivals.of(rows, [0.5] * 4), "no shard is complete"),
        (Arrivals.of(rows, [0.0] * 4), "nothing has come"),
        (Arrivals.of(rows * math.nan, [1.0] * 4), "rows of NaN are refused"),
    ):
        problem = look(noise, 0, arrivals, memory)
        found = noise.excess(problem, everywhere(FIXED["rescale"], problem))
        assert found.share == math.inf, why
    memory, _, m = remembered(3, 4, 0.0)
    alike = Arrivals.of(np.tile(m, (4, 1)), [1.0, 1.0, 1.0, 0.0])
    problem = look(noise, 3, alike, memory)
    assert (
        noise.excess(problem, everywhere(FIXED["rescale"], problem)).share == math.inf
    )


def test_old_memory_says_nothing_of_noise() -> None:
    memory, draw, _ = remembered(3, 4, 0.0)
    noise = Noise()
    look(noise, 9, Arrivals.of(draw(), [1.0, 1.0, 1.0, 0.0]), memory)
    assert noise.bias == math.inf


def test_late_rows_correct_what_was_expected() -> None:
    memory, draw, _ = remembered(3, 4, 0.0)
    rows = draw()
    arrivals = Arrivals.of(rows, [1.0, 1.0, 1.0, 0.0])
    noise = Noise()
    problem = look(noise, 3, arrivals, memory)
    c = everywhere(FIXED["rescale"], problem)
    before = noise.excess(problem, c)
    u, bounds = gram.vectors(arrivals, memory), memory.bounds
    _, weights = gram.problem(arrivals, memory)
    far = rows[-1] + 10.0  # the missing one is far from what the others are
    label = gram.label(u, weights, far, np.asarray(arrivals.total()), bounds)
    noise.learn(before, problem, c, label)
    assert noise.kappa == pytest.approx((4.0 + 8.0) / 5.0)  # at most 8 at once
    after = noise.excess(problem, c)
    assert after.share == pytest.approx(before.share * noise.kappa)
    noise.learn(noise.excess(problem, c)._replace(expected=0.0), problem, c, label)
    assert noise.excess(problem, c) == after
