"""A profile: a statistical model of a log's slowness, from which logs are drawn.

With r the ratio of a time to its step's median, F the distribution of the ratios and
z = Phi^-1(F(r)) their normal scores, the model is

    z[t, w] = sqrt(a) u[w] + sqrt(b) v[t] + sqrt(1 - a - b) e[t, w],
    e[t, w] = rho e[t-1, w] + sqrt(1 - rho^2) noise,     u, v, noise ~ N(0, 1)

Here a says how much of the slowness stays with the worker, b how much comes over all
workers at once, and rho how long a worker's bad stretch lasts. Sampling returns
r = F^-1(Phi(z)), so that every quantile is the log's own (a Gaussian copula; Nelsen
2006).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.traces.log import Log

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIPPED = Path(__file__).parent / "profiles"
# The levels are dense in the tail, where the slowness is.
_LEVELS = np.concatenate(
    [np.linspace(0.0, 0.9, 91)[:-1], 1.0 - np.geomspace(0.1, 1e-5, 110), [1.0]]
)


@dataclass(frozen=True)
class Profile:
    """The distribution and the structure of a log's slowness; see the module.

    Attributes:
        median_s: median of the steps' medians, in seconds.
        levels, quantiles: the levels, and the quantiles of r at them.
        worker_share: a.
        step_share: b.
        persistence: rho.
        meta: source, licence and size of the log that the profile was fitted to.
    """

    median_s: float
    levels: tuple[float, ...]
    quantiles: tuple[float, ...]
    worker_share: float
    step_share: float
    persistence: float
    meta: dict[str, Any] = field(default_factory=dict)

    def sample(self, steps: int, workers: int, seed: int = 0) -> Log:
        """Draw a log of any size from the model."""
        if steps < 1 or workers < 1:
            raise ConfigError(
                f"a log needs at least one step and one worker, got {steps} and "
                f"{workers}"
            )
        random = np.random.default_rng(seed)
        e = random.standard_normal((steps, workers))
        rho, fresh = self.persistence, np.sqrt(1.0 - self.persistence**2)
        for t in range(1, steps):
            e[t] = rho * e[t - 1] + fresh * e[t]
        a, b = self.worker_share, self.step_share
        z = (
            np.sqrt(a) * random.standard_normal(workers)
            + np.sqrt(b) * random.standard_normal((steps, 1))
            + np.sqrt(max(0.0, 1.0 - a - b)) * e
        )
        ratios = np.interp(_phi(z), self.levels, self.quantiles)
        meta = {**self.meta, "sampled": True, "seed": seed}
        return Log(self.median_s * ratios, (), meta, None, "sampled from a profile")

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, name: str | Path) -> Profile:
        """Read a JSON file, or by its name a profile that the package ships.

        Raises:
            ConfigError: there is no such profile, or the file is not a profile.
        """
        path = Path(name)
        shipped = SHIPPED / f"{name}.json"
        if not path.is_file() and not shipped.is_file():
            known = sorted(f.stem for f in SHIPPED.glob("*.json"))
            raise ConfigError(f"no profile {name}: no such file, nor one of {known}")
        data = json.loads((path if path.is_file() else shipped).read_text())
        try:
            data["levels"] = tuple(data["levels"])
            data["quantiles"] = tuple(data["quantiles"])
            return cls(**data)
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{name} is no profile of codedgrad: {error}") from error


def fit(log: Log) -> Profile:
    """Fit a profile to a log."""
    ratios = log.ratios()
    known = ~np.isnan(ratios)
    values = ratios[known]
    z = np.full(ratios.shape, np.nan)
    z[known] = _normal_scores(values)
    with np.errstate(all="ignore"):
        a, b = _variance_shares(z)
        rho = _lag_one(z, log.segments())
    return Profile(
        median_s=float(np.nanmedian(log.medians())),
        levels=tuple(float(x) for x in _LEVELS),
        quantiles=tuple(float(f"{q:.5g}") for q in np.quantile(values, _LEVELS)),
        worker_share=round(a, 4),
        step_share=round(b, 4),
        persistence=round(rho, 4),
        meta={
            "steps": log.steps,
            "workers": log.size,
            **{
                k: log.meta[k]
                for k in ("source", "licence", "license")
                if k in log.meta
            },
        },
    )


def _normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    normal = NormalDist()
    grid = np.array([normal.inv_cdf((i + 0.5) / 4096) for i in range(4096)])
    levels = (np.arange(4096) + 0.5) / 4096
    return np.asarray(np.interp((ranks + 0.5) / len(values), levels, grid))


def _phi(z: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.linspace(-8.0, 8.0, 8193)
    normal = NormalDist()
    return np.asarray(np.interp(z, x, [normal.cdf(float(v)) for v in x]))


def _variance_shares(z: NDArray[np.float64]) -> tuple[float, float]:
    """Return the shares of worker and step in the variance of z.

    The variance that noise adds to the means is subtracted first (ANOVA).
    """
    steps, workers = z.shape
    total = float(np.nanvar(z))
    if total <= 0.0:
        return 0.0, 0.0
    within_worker = (
        float(np.nanmean(np.nanvar(z, axis=0, ddof=1))) if steps > 1 else 0.0
    )
    within_step = (
        float(np.nanmean(np.nanvar(z, axis=1, ddof=1))) if workers > 1 else 0.0
    )
    a = np.nanvar(np.nanmean(z, axis=0)) - within_worker / steps if steps > 1 else 0.0
    b = np.nanvar(np.nanmean(z, axis=1)) - within_step / workers if workers > 1 else 0.0
    share_a = float(np.clip(np.nan_to_num(a / total), 0.0, 0.99))
    share_b = float(np.clip(np.nan_to_num(b / total), 0.0, 0.99 - share_a))
    return share_a, share_b


def _lag_one(z: NDArray[np.float64], segments: NDArray[np.int64]) -> float:
    """Return the autocorrelation of what is neither the worker's nor the step's."""
    if len(z) < 3:
        return 0.0
    rest = z - np.nanmean(z, axis=0) - np.nanmean(z, axis=1, keepdims=True)
    rest = rest - np.nanmean(rest)
    neighbours = segments[1:] == segments[:-1]
    now, after = rest[:-1][neighbours], rest[1:][neighbours]
    both = ~np.isnan(now) & ~np.isnan(after)
    if both.sum() < 3 or now[both].std() == 0.0 or after[both].std() == 0.0:
        return 0.0
    # Subtracting a mean of T steps makes the correlation of neighbours 1 / T too low.
    raw = float(np.corrcoef(now[both], after[both])[0, 1]) + 1.0 / len(z)
    return float(np.clip(raw, 0.0, 0.999))
