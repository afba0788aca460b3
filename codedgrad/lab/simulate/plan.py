"""Which code suits a job? It is chosen on one part of a log and judged on the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad import codes
from codedgrad.errors import ConfigError
from codedgrad.lab.simulate import policies, simple
from codedgrad.lab.simulate.outcome import Comm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codedgrad.lab.simulate.outcome import Outcome
    from codedgrad.lab.simulate.times import Times

# A smaller expected speed-up is not worth a change of the training script.
_WORTH_IT = 1.10
_DRAWS = 1000  # of the bootstrap
_CHOICES = (  # with the simulator's settings same_bits and pieces
    ("same_bits=False", 0, 1),
    ("same_bits=True", 1, 1),
    ("same_bits=True, pieces=False", 1, 0),
)
# The search looks at so many times and steps; the verdict looks at all of its part.
_MOST_TIMES, _FEWEST_STEPS = 20_000, 40
_MORE_WORK = 0.02  # a frugal candidate does so many more passes / n than the least


@dataclass(frozen=True)
class Plan:
    """The recommendation.

    Attributes:
        recommend: a policy, as `codedgrad simulate --policy` takes it, or "off".
        speedup, speedup_low, speedup_high: speed-up over waiting for everybody, with a
            95 % interval of a moving-block bootstrap (Kunsch 1989) over the steps that
            the choice was not made on.
        bound_speedup: speed-up of a perfect division of the work.
        redundant_work: work done beyond the n passes, over n.
        reason: a sentence that says why, and what limits the speed-up.
        table: the figures of the best candidates on the steps they were chosen on.
        choices: for a spread code, what whole passes, `same_bits=True` and
            `same_bits=True` with `pieces=False` give, on the steps of `table`: `calm`,
            the time of a step with nobody late, in whole passes, and `speedup`.
        steps: the numbers of steps that the choice was made on, and judged by. The
            figures of `table` and `choices` are of the first ones and `speedup` is of
            the others, so the same code has two speed-ups; of the few steps of a short
            log they are the same.
        notes: what makes the recommendation less certain.
    """

    recommend: str
    speedup: float
    speedup_low: float
    speedup_high: float
    bound_speedup: float
    redundant_work: float
    reason: str
    table: tuple[dict[str, Any], ...]
    choices: tuple[dict[str, Any], ...] = ()
    steps: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Job:
    """What every candidate is judged with; see `plan`."""

    comm: Comm
    micro_cost: float
    same_bits: bool
    seed: int

    def play(self, name: str, times: Times) -> Outcome:
        """Play a candidate, with what its pieces cost."""
        family, settings = policies.parse(name)
        if family == "spread":
            settings |= {"piece_cost": self.micro_cost, "same_bits": self.same_bits}
        return policies.POLICIES[family](times, self.comm, **settings)


def candidates(workers: int) -> list[str]:
    """Return the exact policies that codedgrad can run, with the settings to try."""
    out = [
        f"spread:micro={m},copies={c},patience={p:g}"
        for m in sorted({codes.usual_pieces(workers), min(8, workers - 1), 4, 8, 16})
        for c in (1, 2, 4, 16)
        for p in (0.02, 0.1, 0.3)
        if c < workers
    ]
    out += [
        f"scheduled:copies={c},order={o}"
        for c in (2, 3)
        for o in ("cyclic", "staircase")
        if c <= workers
    ]
    out += [f"fractional:copies={c}" for c in (2, 3, 4) if workers % c == 0]
    out += [f"cyclic:stragglers={s}" for s in (1, 2) if s < workers]
    return out


def plan(
    times: Times,
    comm: Comm | None = None,
    *,
    micro_cost: float = 0.0,
    same_bits: bool = False,
    seed: int = 0,
) -> Plan:
    """Search the codes for the one that suits a job's times.

    Args:
        times: the job's times.
        comm: the job's network; None is one that costs nothing.
        micro_cost: how much longer a pass takes per doubling of its micro-batches,
            e.g. 0.02; `benchmarks/bench_step.py` measures it. Helpers pay for it, and
            with `same_bits` every worker in every step.
        same_bits: the setting of `CodedGradient`.
        seed: seed of the bootstrap.

    Raises:
        ConfigError: the job has a single worker.
    """
    job = _Job(comm or Comm(), micro_cost, same_bits, seed)
    steps, n = times.shape
    if n < 2:
        raise ConfigError(
            "the log has one worker: nobody can stand in for it, there is nothing to "
            "plan"
        )
    search, judge = _halves(steps, n)
    some = times.rows(search)
    sync = float(simple.sync(some, job.comm).step.mean())
    table: list[dict[str, Any]] = []
    for name in candidates(n):
        outcome = job.play(name, some)
        step = float(outcome.step.mean())
        redundant = float(outcome.redundant.mean())
        table.append({"policy": name, "speedup": sync / step, "redundant": redundant})
    table.sort(key=lambda row: -row["speedup"])
    # Among those within half a percent of the best, prefer the frugal ones, and among
    # these the one that could help most with what the log has not shown yet.
    near = [row for row in table if row["speedup"] >= 0.995 * table[0]["speedup"]]
    least = min(row["redundant"] for row in near)
    frugal = [row for row in near if row["redundant"] <= least + _MORE_WORK]
    chosen = max(frugal, key=lambda row: _helpers(row["policy"]))["policy"]
    found = _verdict(times.rows(judge), chosen, table, job)
    choices = _choices(chosen, some, sync, job)
    return replace(found, choices=choices, steps=(len(search), len(judge)))


def _choices(
    chosen: str, times: Times, sync: float, job: _Job
) -> tuple[dict[str, Any], ...]:
    """Return what the choices of same_bits and pieces give with the chosen code."""
    family, settings = policies.parse(chosen)
    if family != "spread":
        return ()
    rows = []
    for choice, same_bits, pieces in _CHOICES:
        more = {"same_bits": same_bits, "pieces": pieces, "piece_cost": job.micro_cost}
        step = policies.POLICIES[family](times, job.comm, **settings, **more).step
        doublings = float(np.log2(settings["micro"])) if same_bits and pieces else 0.0
        calm = 1.0 + job.micro_cost * doublings
        speedup = sync / float(step.mean())
        rows.append({"choice": choice, "calm": calm, "speedup": speedup})
    return tuple(rows)


def _verdict(times: Times, chosen: str, table: list[dict[str, Any]], job: _Job) -> Plan:
    sync = simple.sync(times, job.comm).step
    outcome = job.play(chosen, times)
    step = outcome.step
    low, high = _interval(sync, step, job.seed)
    speedup = float(sync.mean() / step.mean())
    bound = times.bound() + 2.0 * job.comm.hop_s(times.shape[1]) / times.median_s
    ceiling = float(sync.mean() / bound.mean())
    off = speedup < _WORTH_IT or low < 1.0
    notes = []
    if len(sync) < 20:
        notes.append(f"only {len(sync)} steps to judge by: record more")
    if times.filled:
        notes.append(f"{times.filled} missing times were taken as {times.filled_by}")
    return Plan(
        recommend="off" if off else chosen,
        speedup=1.0 if off else speedup,
        speedup_low=1.0 if off else low,
        speedup_high=1.0 if off else high,
        bound_speedup=ceiling,
        redundant_work=0.0 if off else float(outcome.redundant.mean()),
        reason=_reason(times, speedup, low, ceiling, off=off, chosen=chosen),
        table=tuple(table[:8]),
        notes=tuple(notes),
    )


def _reason(
    times: Times, speedup: float, low: float, ceiling: float, *, off: bool, chosen: str
) -> str:
    if off and ceiling < 1.03:
        return (
            f"leave it off: even a perfect division of the work would gain "
            f"{ceiling:.2f} x; the workers are equally fast"
        )
    if off:
        return (
            f"leave it off: the best, {chosen}, gave {speedup:.2f} x (at least "
            f"{low:.2f} x with 95 % confidence) of the {ceiling:.2f} x of a perfect "
            f"division; less than {_WORTH_IT:.2f} x, or no gain for sure, is not worth "
            f"a change"
        )
    alone = times.alone()
    slow = alone > 1.5
    crowd = float(np.quantile(slow.mean(axis=1), 0.95))
    steady = (slow.mean(axis=0) >= 0.5).sum()
    if steady:
        limit = f"{steady} worker(s) slow in most steps: their work is done by others"
    elif crowd > 0.1:
        limit = f"in a bad step {100 * crowd:.0f} % of the workers are slow at once"
    else:
        limit = "the slow worker changes from step to step"
    return (
        f"{chosen} reaches {100 * speedup / ceiling:.0f} % of the {ceiling:.2f} x of a "
        f"perfect division; {limit}"
    )


def _halves(steps: int, workers: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the steps to choose on and those to judge by; the same if there are few.

    Blocks of ten steps alternate, because a log often has several regimes, one after
    another.
    """
    everything = np.arange(steps)
    if steps < 40:
        return everything, everything
    search = everything // 10 % 2 == 0
    most = max(_FEWEST_STEPS, _MOST_TIMES // workers)
    return everything[search][:most], everything[~search]


def _helpers(name: str) -> int:
    """Return how many others may work for one late worker."""
    family, settings = policies.parse(name)
    copies = int(settings.get("copies", settings.get("stragglers", 1)))
    return copies * int(settings.get("micro", 1)) if family == "spread" else copies


def _interval(
    sync: NDArray[np.float64], step: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """Return a 95 % interval of the ratio of means, by a moving-block bootstrap."""
    count = len(sync)
    if count < 2:
        ratio = float(sync.mean() / step.mean())
        return ratio, ratio
    block = max(1, round(count ** (1 / 3)))
    blocks = -(-count // block)
    random = np.random.default_rng(seed)
    starts = random.integers(0, count - block + 1, (_DRAWS, blocks))
    index = (starts[..., None] + np.arange(block)).reshape(_DRAWS, -1)[:, :count]
    ratios = sync[index].mean(axis=1) / step[index].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
