"""Figures of a log: how much it straggles, and whether it is always the same worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from codedgrad.lab.traces.log import Log

_SLOW = 1.5  # times the step's median


def describe(log: Log) -> dict[str, Any]:
    """Figures of the ratios r = time / the step's median.

    slow_again: of the workers above 1.5 x in a step, the share that is so in the next
    recorded one of the segment (NaN-free: 0 if nobody is). kind: "none", "persistent"
    (half of the slow worker-steps are of workers slow in half of their steps),
    "roaming" else. sync_over_median: mean over steps of max r; bound_speedup: that
    over the mean of n / sum(1 / r).
    """
    r = log.ratios()
    values = r[~np.isnan(r)]
    slow = np.nan_to_num(r, nan=0.0) > _SLOW
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    slowest = np.nanmax(r, axis=1)
    count = (~np.isnan(r)).sum(axis=1)
    bound = count / np.nansum(1.0 / r, axis=1)
    per_worker = slow.sum(axis=0)
    steady = per_worker >= np.maximum(3, 0.5 * (~np.isnan(r)).sum(axis=0))
    share = float(per_worker[steady].sum() / max(1, per_worker.sum()))
    kind = "none" if not slow.any() else "persistent" if share >= 0.5 else "roaming"
    return {
        "steps": log.steps,
        "workers": log.size,
        "median_s": float(np.nanmedian(log.medians())),
        **{name: float(np.quantile(values, q)) for name, q in quantiles.items()},
        **{f"above_{x:g}": float((values > x).mean()) for x in (1.5, 2.0, 5.0)},
        "sync_over_median": float(slowest.mean()),
        "bound_speedup": float(slowest.mean() / bound.mean()),
        "slow_again": _again(slow, log.segments()),
        "persistent_share": share,
        "kind": kind,
    }


def _again(slow: np.ndarray, segments: np.ndarray) -> float:
    if len(slow) < 2:
        return 0.0
    neighbours = segments[1:] == segments[:-1]
    now, after = slow[:-1][neighbours], slow[1:][neighbours]
    return float((now & after).sum() / max(1, now.sum()))
