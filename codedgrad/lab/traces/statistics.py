"""Figures of a log: how slow its workers are, and whether the same ones always are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from codedgrad.lab.traces.log import Log

_SLOW = 1.5  # who takes so many times the step's median is slow


def describe(log: Log) -> dict[str, Any]:
    """Return the figures of the ratios r = time / the step's median.

    above_X: share of the ratios above X.
    sync_over_median: mean over the steps of max r.
    bound_speedup: sync_over_median over the mean of n / sum(1 / r).
    slow_again: among the workers above 1.5 x in a step, the share that is so again in
    the segment's next recorded step; 0 if no worker is slow.
    persistent_share: share of the slow (worker, step) pairs that belong to workers
    which are slow in half of their steps.
    kind: "none", "persistent" (persistent_share is at least 0.5) or "roaming".
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
