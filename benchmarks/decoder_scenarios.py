"""The scenarios of bench_decoder: recorded runs, played back with shards late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codedgrad.lab.decoders import evaluate, record, replay, tasks
from codedgrad.lab.decoders.gram import squared_error
from codedgrad.lab.decoders.learned import Learned

if TYPE_CHECKING:
    from pathlib import Path

    from codedgrad.lab.decoders.network import Network

TASKS = {"wine": 16, "linear": 32, "cnn": 32, "text": 32}  # name: samples of a shard
SHARDS, MICRO, STEPS = 8, 4, 300
INFORMATION_STEPS = 150
MAX_ERRORS = (0.01, 0.03, 0.1, 0.3)


class Late(NamedTuple):
    """Which shards are late, and for how long.

    Attributes:
        missing: shards that are late in every step.
        pattern: a pattern of `replay.erasures`.
        delay: steps until late rows arrive.
    """

    missing: int
    pattern: str
    delay: int


LATE = {
    "1 of 8": Late(1, "random", 1),
    "4 of 8": Late(4, "random", 1),
    "same one": Late(1, "fixed", 1),
    "bursty 2": Late(2, "bursty", 1),
    "2 of 8, 6 steps late": Late(2, "random", 6),
}


def recording(
    name: str, partition: str, steps: int, cache: Path | None
) -> replay.Recording:
    """Record a run of MICRO micro-batches per shard, or read it from the cache."""
    path = cache / f"{name}-{partition}-{steps}.npz" if cache else None
    if path is not None and path.exists():
        return replay.load(path)
    run = record.Run(
        partition,
        shards=SHARDS,
        steps=steps,
        batch=TASKS[name],
        micro=MICRO,
        seed=11,
        population=True,
    )
    arrays = record.record(tasks.task(name, seed=1), run)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    return replay.of(arrays)


def scenario(run: replay.Recording, late: Late, network: Network) -> dict[str, Any]:
    """Return the figures of all decoders in one scenario."""
    whole = replay.Recording(
        run.grads.mean(axis=2, keepdims=True), run.sizes, run.population
    )
    steps = len(run.grads)
    arrived = replay.erasures(steps, SHARDS, late.missing, late.pattern, seed=5)
    errors = evaluate.errors(whole, arrived, late.delay, network)
    figures = evaluate.summary(errors)
    fixed = min(evaluate.FIXED_NAMES, key=lambda n: figures[n]["mean"])
    learned, squares = figures["learned"], figures["online_ls"]
    skip = steps // 10
    true, bound = (errors["learned"][key][skip:] for key in ("true", "bound"))
    return {
        "decoders": figures,
        "best_fixed": fixed,
        "over_best_fixed": learned["mean"] / figures[fixed]["mean"],
        "over_online_ls": learned["mean"] / squares["mean"],
        "over_online_ls_first_50": learned["first_50"] / squares["first_50"],
        "steps": steps - skip,
        "settled": {str(e): int((bound <= e).sum()) for e in MAX_ERRORS},
        "wrong": {str(e): int(((bound <= e) & (true > e)).sum()) for e in MAX_ERRORS},
        "batch_population": float(evaluate.population_of_batch(whole)[skip:].mean()),
    }


def partly(run: replay.Recording, late: Late, source: str) -> np.ndarray:
    """Return what has arrived [steps, shards, MICRO] if half of the late work is done.

    `source` says who has done it: "own" is the late worker, "backups" are others;
    with any other source nothing is done.
    """
    steps = len(run.grads)
    arrived = replay.erasures(steps, SHARDS, late.missing, late.pattern, seed=5)
    out = np.repeat(arrived[:, :, None], MICRO, axis=2)
    if source == "own":
        out[:, :, : MICRO // 2] = True
    elif source == "backups":
        random = np.random.default_rng(5)
        for row in out:
            j, i = np.nonzero(~row)
            pick = random.permutation(len(j))[: len(j) // 2]
            row[j[pick], i[pick]] = True
    return out


def learned_tiles(
    run: replay.Recording,
    arrived: np.ndarray,
    delay: int,
    network: Network,
    drop: tuple[str, ...] = (),
) -> np.ndarray:
    """Return the learned decoder's squared errors over |g|^2, [steps, tiles].

    `drop` names vectors of the span that it must do without.
    """
    decoder = Learned(len(run.bounds) - 1, network)
    out = np.zeros((len(run.grads), len(run.bounds) - 1))
    chosen: dict[int, Any] = {}
    for kind, step in replay.play(run, arrived, delay, drop):
        inner, label = step.inner, step.label
        if kind == "late":
            decoder.learn(inner, chosen.pop(step.number), label)
            continue
        c = chosen[step.number] = decoder.coefficients(inner)
        error = squared_error(c, inner.gram, label.target, label.norm)
        out[step.number] = inner.rho**2 * error / (step.truth @ step.truth)
        decoder.replay(inner)
    return out


def halved(run: replay.Recording) -> replay.Recording:
    """Return the run with one more boundary of tensors, in the middle of the model."""
    ends = np.union1d(np.cumsum(run.sizes), [run.sizes.sum() // 2])
    return replay.Recording(run.grads, np.diff(ends, prepend=0))


def information(
    run: replay.Recording, late: Late, network: Network
) -> dict[str, float]:
    """Return errors when half of the late work is done, over those when none is."""
    run = replay.Recording(run.grads[:INFORMATION_STEPS], run.sizes)
    skip = len(run.grads) // 10
    cut = halved(run)
    none = learned_tiles(cut, partly(cut, late, "none"), late.delay, network)[skip:]
    base = float(none.sum(axis=1).mean())
    # The last half of the elements is complete, so the error is in the first tiles.
    first = int(np.searchsorted(cut.bounds, run.sizes.sum() // 2 + 1)) - 1
    figures = {"none": base, "buckets": float(none[:, :first].sum(1).mean()) / base}

    def ratio(used: replay.Recording, arrived: np.ndarray, *drop: str) -> float:
        tiles = learned_tiles(used, arrived, late.delay, network, drop)[skip:]
        return float(tiles.sum(axis=1).mean()) / base

    # As k * m shards of one micro-batch, each micro-batch has a memory of its own.
    steps, k, m, count = run.grads.shape
    flat = replay.Recording(run.grads.reshape(steps, k * m, 1, count), run.sizes)
    for source in ("own", "backups"):
        arrived = partly(run, late, source)
        figures[source] = ratio(run, arrived)
        figures[f"{source}_without"] = ratio(run, arrived, "partial")
        figures[f"{source}_micro"] = ratio(flat, arrived.reshape(steps, k * m))
    return figures
