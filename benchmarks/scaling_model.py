"""Predicted steps for any number of workers, from logs and the cost of an exchange."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.lab import simulate, traces
from codedgrad.lab.simulate.plan import plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exchange_model import Network
    from numpy.typing import NDArray

    from codedgrad.lab.simulate import Times

DEFAULT = "spread:micro=4,copies=2"
# Numbers of workers; any number has the settings of the next lower one.
PLANNED_AT = (2, 4, 16, 64, 256)
DROPPED = 0.05  # share of the workers, at least one, that `backup` leaves out
LOGS = {  # title: (published log, shipped profile)
    "AWS Lambda, CNN": ("aws_lambda_cnn_desktop4_b2048_canada", "aws_lambda"),
    "AWS Lambda, CNN, milder": ("aws_lambda_cnn_mbp2_b256_sydney", "aws_lambda_mild"),
    "AWS Lambda, ResNet-18": ("aws_lambda_resnet18_base_b512_canada", None),
    "EC2": ("ec2_gradient_coding_4", "ec2"),
    "dedicated GPUs": ("mlperf_deepcam_selene256_steps", "dedicated"),
}


@dataclass(frozen=True)
class Source:
    """The source of slowness: a log as far as it goes, and its profile beyond that.

    Attributes:
        ratios: [steps, workers], time over the step's median; None if there is only a
            profile.
        profile: the profile that more workers are drawn from; None if no worker is
            slow.
    """

    ratios: NDArray[np.float64] | None
    profile: traces.Profile | None

    def replays(self, workers: int) -> bool:
        """Return whether the log has so many workers."""
        return self.ratios is not None and workers <= self.ratios.shape[1]

    def times(self, workers: int, steps: int, seed: int) -> Times:
        """Return the times of at most `steps` steps.

        Seed 0 takes all steps of a log. Other seeds take the blocks of ten by which
        `codedgrad plan` judges, and none of those that it chooses on.
        """
        if self.profile is None:
            return simulate.from_ratios(np.ones((min(steps, 3), workers)))
        if self.ratios is None or not self.replays(workers):
            log = self.profile.sample(steps, workers, seed=1000 * workers + seed)
            return simulate.from_ratios(log.compute / self.profile.median_s)
        rows = np.arange(len(self.ratios))
        if seed and len(rows) >= 40:
            rows = rows[rows // 10 % 2 == 1]
        random = np.random.default_rng(seed)
        some = np.sort(random.permutation(self.ratios.shape[1])[:workers])
        return simulate.from_ratios(self.ratios[np.ix_(rows[:steps], some)])


def sources(folder: Path | None) -> dict[str, Source]:
    """Return the published logs, or without their folder the shipped profiles."""
    found = {}
    for title, (name, profile) in LOGS.items():
        if folder is not None:
            log = traces.read(folder / f"{name}.npz")
            found[title] = Source(np.nan_to_num(log.ratios(), nan=1.0), traces.fit(log))
        elif profile is not None:
            found[title] = Source(None, traces.Profile.load(profile))
    return found


CALM = Source(None, None)


@dataclass(frozen=True)
class Job:
    """The job that is trained.

    Attributes:
        pass_s: seconds of a median worker's pass as one micro-batch.
        images: samples of a pass.
        micro_cost: cost of micro-batches, as in `codedgrad.lab.simulate.plan`.
        total: passes of a step over all workers, for strong scaling; None for weak.
    """

    pass_s: float
    images: float = 1.0
    micro_cost: float = 0.0
    total: float | None = None

    def share(self, workers: int) -> float:
        """Return the passes of one worker in a step."""
        return 1.0 if self.total is None else self.total / workers

    def micro_factor(self, policy: str) -> float:
        """Return how much longer a pass takes in the policy's micro-batches."""
        name, settings = simulate.parse(policy)
        micro = int(settings.get("micro", 4 if name == "spread" else 1))
        return 1.0 + self.micro_cost * float(np.log2(micro))


def step_s(policy: str, times: Times, job: Job, network: Network) -> float:
    """Return the mean seconds of a step.

    `sync` and `backup` exchange by the best all-reduce. `uncoded` waits for everybody
    too, but exchanges as codedgrad does.
    """
    workers = times.shape[1]
    text = "sync" if policy == "uncoded" else policy
    unit = job.pass_s * job.share(workers) * job.micro_factor(text)
    times = replace(times, median_s=unit)
    if policy == "sync" or policy.startswith("backup"):
        passes = float(simulate.run(policy, times).step.mean())
        return unit * passes + network.allreduce_s(workers)
    return unit * float(simulate.run(text, times, network).step.mean())


def bound_s(times: Times, job: Job) -> float:
    """Return the seconds of a perfectly divided step whose exchange costs nothing."""
    return job.pass_s * job.share(times.shape[1]) * float(times.bound().mean())


def effort(workers: int, *, toy: bool) -> tuple[int, int]:
    """Return the number of draws to average over, and of the steps of each."""
    if toy:
        return 1, 4
    draws = 8 if workers <= 16 else 4 if workers <= 64 else 2 if workers <= 512 else 1
    return draws, min(60, max(5, 12_000 // (draws * workers)))


def curves(
    source: Source,
    counts: Sequence[int],
    policies: dict[str, Any],
    job: Job,
    network: Network,
    *,
    toy: bool = False,
) -> dict[str, list[float]]:
    """Return {label: seconds of a step, by number of workers}.

    A policy is text, or a function that returns it for a number of workers. One worker
    alone has the median's speed and no exchange.
    """
    found: dict[str, list[float]] = {label: [] for label in [*policies, "bound"]}
    for n in counts:
        if n == 1:
            alone = job.pass_s * job.share(1)
            for values in found.values():
                values.append(alone)
            continue
        draws, steps = effort(n, toy=toy)
        drawn = [source.times(n, steps, d + 1) for d in range(draws)]
        if source.profile is None:
            drawn = drawn[:1]
        for label, policy in policies.items():
            text = policy(n) if callable(policy) else policy
            each = [step_s(text, t, job, network) for t in drawn]
            found[label].append(float(np.mean(each)))
        found["bound"].append(float(np.mean([bound_s(t, job) for t in drawn])))
    return found


def backup(workers: int) -> str:
    """Return the policy of backup workers; Chen et al. 2016 dropped 4 of 100."""
    return f"backup:drop={dropped(workers)}"


def dropped(workers: int) -> int:
    """Return the number of workers that `backup` leaves out."""
    return max(1, round(DROPPED * workers)) if workers > 1 else 0


def planned(
    source: Source, counts: Sequence[int], job: Job, network: Network, *, toy: bool
) -> dict[int, str]:
    """Return {workers: settings}, chosen on steps that the curves do not use."""
    found = {}
    for at in PLANNED_AT[:1] if toy else PLANNED_AT:
        if at > max(counts):
            continue
        times = source.times(at, 6 if toy else 60_000 // at, seed=0)
        unit = replace(times, median_s=job.pass_s * job.share(at))
        recommended = plan(unit, network, micro_cost=job.micro_cost).recommend
        found[at] = "uncoded" if recommended == "off" else recommended
    return found


def settings_for(chosen: dict[int, str], workers: int) -> str:
    """Return the settings of the next lower number of workers that was planned for."""
    lower = [at for at in chosen if at <= workers] or [min(chosen)]
    return chosen[max(lower)]


def flattens_at(counts: Sequence[int], throughput: Sequence[float]) -> int | None:
    """Return the first number of workers whose doubling brings less than 1.25 x.

    Numbers below 4 do not count, and `counts` must double. None means there is none.
    """
    for n, now, then in zip(counts, throughput, throughput[1:], strict=False):
        if n >= 4 and then < 1.25 * now:
            return n
    return None


def half_up_to(counts: Sequence[int], throughput: Sequence[float]) -> int:
    """Return up to how many workers each brings half of what the first one does."""
    good = 0
    for n, now in zip(counts, throughput, strict=True):
        if now < 0.5 * n * throughput[0]:
            break
        good = n
    return good
