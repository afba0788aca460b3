"""The tables of decoder.md, and the figures that have targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from decoder_scenarios import LATE, MAX_ERRORS, SHARDS

from codedgrad.lab.decoders import evaluate, record

Rows = list[dict[str, Any]]

PERSISTENT = ("fixed", "classes", "full")
SOURCES = {
    "own": "the late worker's first half",
    "backups": "a random half, by back-ups",
    "buckets": "the last half of the model",
}
TARGETS = {  # figure: (its title, comparison, limit)
    "over_best_fixed_worst": ("learned / best fixed, worst scenario", "<=", 1.03),
    "best_fixed_over_learned_persistent": (
        "best fixed / learned, persistent shards, geometric mean", ">=", 1.3),
    "single_fixed_over_learned": (
        "best single fixed decoder / learned, geometric mean", ">=", 2.0),
    "over_online_ls_worst": ("learned / online_ls, worst scenario", "<=", 1.03),
    "over_online_ls": ("learned / online_ls, geometric mean", "<=", 0.97),
    "over_online_ls_first_50": (
        "the same over the first 50 steps", "<=", 0.85),
    "calibration": ("calibration over all estimates, at least", ">=", 0.8),
    "calibration_most": ("calibration over all estimates, at most", "<=", 1.25),
    "calibration_low": ("calibration, lowest of a recording", ">=", 0.8),
    "calibration_high": ("calibration, highest of a recording", "<=", 1.25),
    "exceeded": ("share of the steps above the bound", "<=", 0.05),
    "settled_exceeded": (
        "share of the settled steps above max_error, worst max_error", "<=", 0.05),
    "own_worst": ("half / none: the late worker's own, worst", "<=", 0.55),
    "backups_worst": ("half / none: back-ups', worst", "<=", 0.55),
    "own_micro_worst": (
        "half / none: own, memory per micro-batch, worst", "<=", 0.55),
    "backups_micro_worst": (
        "half / none: back-ups', memory per micro-batch, worst", "<=", 0.55),
    "buckets_worst": ("half / none: buckets, worst", "<=", 0.55),
}  # fmt: skip


def geomean(values: Any) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(np.maximum(list(values), 1e-30)))))


def overall(rows: Rows, news: Rows) -> dict[str, float]:
    """Return the figures that have targets, and their parts."""
    persistent = [r for r in rows if r["partition"] in PERSISTENT]
    learned = [r["decoders"]["learned"] for r in rows]
    single = {
        n: geomean(
            r["decoders"][n]["mean"] / m["mean"]
            for r, m in zip(rows, learned, strict=True)
        )
        for n in evaluate.FIXED_NAMES
    }
    wrong = [
        sum(r["wrong"][e] for r in rows) / max(1, sum(r["settled"][e] for r in rows))
        for e in map(str, MAX_ERRORS)
    ]
    out = {
        "over_best_fixed_worst": max(r["over_best_fixed"] for r in rows),
        "over_best_fixed": geomean(r["over_best_fixed"] for r in rows),
        "best_fixed_over_learned_persistent": 1.0
        / geomean(r["over_best_fixed"] for r in persistent),
        "single_fixed_over_learned": min(single.values()),
        **{f"{n}_over_learned": value for n, value in single.items()},
        "over_online_ls_worst": max(r["over_online_ls"] for r in rows),
        "over_online_ls": geomean(r["over_online_ls"] for r in rows),
        "over_online_ls_first_50": geomean(r["over_online_ls_first_50"] for r in rows),
        **_calibration(rows),
        "exceeded": float(np.mean([m["exceeded"] for m in learned])),
        "exceeded_worst": max(m["exceeded"] for m in learned),
        "settled_exceeded": max(wrong),
    }
    for key in (*SOURCES, "own_micro", "backups_micro"):
        if news:
            out[key] = geomean(n[key] for n in news)
            out[f"{key}_worst"] = max(n[key] for n in news)
    return out


def _calibration(rows: Rows) -> dict[str, float]:
    """Return the predicted over the true error, overall and by recording."""
    pooled: dict[str, list[float]] = {}
    for row in rows:
        learned = row["decoders"]["learned"]
        sums = pooled.setdefault(f"{row['task']} {row['partition']}", [0.0, 0.0])
        sums[0] += learned["calibration"] * learned["mean"]
        sums[1] += learned["mean"]
    calibration = [predicted / true for predicted, true in pooled.values()]
    return {
        "calibration": sum(p for p, _ in pooled.values())
        / sum(t for _, t in pooled.values()),
        "calibration_median": float(np.median(calibration)),
        "calibration_low": min(calibration),
        "calibration_high": max(calibration),
    }


def verdicts(figures: dict[str, float]) -> str:
    """Return the table of targets."""
    lines = ["| figure | value | target | |", "|---|---|---|---|"]
    for key, (title, comparison, limit) in TARGETS.items():
        if key.removesuffix("_most") not in figures:
            continue
        value = figures[key.removesuffix("_most")]
        good = value <= limit if comparison == "<=" else value >= limit
        verdict = "met" if good else "**missed**"
        lines.append(f"| {title} | {value:.3f} | {comparison} {limit} | {verdict} |")
    return "\n".join(lines)


def scenarios(rows: Rows) -> str:
    """Return the table of all scenarios, one row for each."""
    lines = [
        "| task | partition | late | best fixed | its error | online_ls | learned | "
        "oracle | / fixed | / online_ls | first 50 | calibration | exceeded |",
        "|---" * 13 + "|",
    ]
    for r in rows:
        d = r["decoders"]
        mean = {n: d[n]["mean"] for n in ("online_ls", "learned", "oracle")}
        lines.append(
            f"| {r['task']} | {r['partition']} | {r['late']} | {r['best_fixed']} | "
            f"{d[r['best_fixed']]['mean']:.3g} | {mean['online_ls']:.3g} | "
            f"{mean['learned']:.3g} | {mean['oracle']:.3g} | "
            f"{r['over_best_fixed']:.3f} | {r['over_online_ls']:.3f} | "
            f"{r['over_online_ls_first_50']:.3f} | "
            f"{d['learned']['calibration']:.2f} | {d['learned']['exceeded']:.3f} |"
        )
    return "\n".join(lines)


def by_partition(rows: Rows) -> str:
    """Return geometric means by partition of errors over those of rescaling."""
    names = list(rows[0]["decoders"])
    lines = [f"| partition | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for p in record.PARTITIONS:
        own = [r["decoders"] for r in rows if r["partition"] == p]
        cells = [
            f"{geomean(d[n]['mean'] / d['rescale']['mean'] for d in own):.3g}"
            for n in names
        ]
        lines.append(f"| {p} | {' | '.join(cells)} |")
    return "\n".join(lines)


def population(rows: Rows) -> str:
    """Return the errors against the population's gradient, over the exact batch's."""
    names = list(rows[0]["decoders"])
    lines = [f"| partition | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for p in record.PARTITIONS:
        own = [r for r in rows if r["partition"] == p]
        cells = [
            f"{geomean(r['decoders'][n]['population'] / r['batch_population'] for r in own):.3f}"  # noqa: E501
            for n in names
        ]
        lines.append(f"| {p} | {' | '.join(cells)} |")
    return "\n".join(lines)


def law(rows: Rows) -> str:
    """Return what learning gains over rescaling with fresh shards, and at most can."""
    lines = ["| late | gain over rescaling | k / (k - m) |", "|---|---|---|"]
    for title, late in LATE.items():
        gains = [
            r["decoders"]["rescale"]["mean"] / r["decoders"]["learned"]["mean"]
            for r in rows
            if r["partition"] == "fresh" and r["late"] == title and r["task"] != "wine"
        ]
        if gains:
            most = SHARDS / (SHARDS - late.missing)
            lines.append(f"| {title} | {geomean(gains):.2f} | {most:.2f} |")
    return "\n".join(lines)


def ablation(news: Rows) -> str:
    """Return the errors when half of the late work is done, over those when none is."""
    if not news:
        return "not measured"
    lines = [
        "| what has come | memory, span | "
        + " | ".join(record.PARTITIONS)
        + " | worst scenario |",
        "|---" * (3 + len(record.PARTITIONS)) + "|",
    ]
    kinds = {
        "": "per shard",
        "_without": "per shard, without `partial`",
        "_micro": "per micro-batch",
    }
    for source, title in SOURCES.items():
        for suffix, kind in kinds.items():
            key = source + suffix
            if key not in news[0]:
                continue
            cells = [
                f"{geomean(n[key] for n in news if n['partition'] == p):.3f}"
                for p in record.PARTITIONS
            ]
            worst = max(news, key=lambda n: n[key])
            where = f"{worst['task']} {worst['partition']} {worst['late']}"
            lines.append(
                f"| {title} | {kind} | {' | '.join(cells)} | "
                f"{worst[key]:.3f} ({where}) |"
            )
    return "\n".join(lines)


def settled(rows: Rows) -> str:
    """Return by max_error the steps that would settle, and the wrong ones of them."""
    lines = ["| max_error | settled | of them above it |", "|---|---|---|"]
    total = sum(r["steps"] for r in rows)
    for e in map(str, MAX_ERRORS):
        some = sum(r["settled"][e] for r in rows)
        wrong = sum(r["wrong"][e] for r in rows)
        lines.append(
            f"| {e} | {100 * some / total:.0f} % | {100 * wrong / max(1, some):.1f} % |"
        )
    return "\n".join(lines)
