"""The best coefficients of the span in hindsight; for tests and plots only."""

from __future__ import annotations

from codedgrad.lab.decoders.candidates import solve
from codedgrad.lab.decoders.gram import Array, Label, Problem


def oracle(problem: Problem, label: Label) -> Array:
    """C [T, P] = argmin |x - V c|^2 for this very step; no decoder can know it."""
    return solve(problem.gram, label.target, 1e-12)
