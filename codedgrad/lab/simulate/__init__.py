"""Step times under a policy, from a log or a profile."""

from __future__ import annotations

from codedgrad.lab.simulate.outcome import Comm, Outcome
from codedgrad.lab.simulate.policies import POLICIES, evaluate, parse, run
from codedgrad.lab.simulate.times import MODELS, Times, from_log, from_ratios

__all__ = [
    "MODELS",
    "POLICIES",
    "Comm",
    "Outcome",
    "Times",
    "evaluate",
    "from_log",
    "from_ratios",
    "parse",
    "run",
]
