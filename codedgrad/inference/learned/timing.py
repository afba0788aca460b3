"""Seconds of functions on this device; they take turns, for a machine may be busy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def seconds_of(
    functions: Sequence[Callable[[], object]],
    device: torch.device,
    rounds: int = 9,
    least_s: float = 2e-3,
) -> list[float]:
    """Returns the seconds of a call of each function; they take turns.

    Args:
        functions: what is timed.
        device: where they compute; it has finished before a clock is read.
        rounds: the number of turns, of which the quickest counts: what else runs on
            the machine only ever adds to a turn.
        least_s: a turn repeats its call until this has passed.
    """
    counts = []
    for function in functions:
        function()
        spent = max(_timed(function, 1, device), 1e-7)
        counts.append(max(1, min(1000, round(least_s / spent))))
    turns: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds):
        for place in range(len(functions)):
            which = (place + turn) % len(functions)
            spent = _timed(functions[which], counts[which], device)
            turns[which].append(spent / counts[which])
    return [min(found) for found in turns]


def _timed(function: Callable[[], object], count: int, device: torch.device) -> float:
    _finish(device)
    begin = time.perf_counter()
    for _ in range(count):
        function()
    _finish(device)
    return time.perf_counter() - begin


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
