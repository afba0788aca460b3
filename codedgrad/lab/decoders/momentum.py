"""Momentum fill: late shards are taken to be like recent decoded gradients.

The running average is the one of SGD with momentum 0.9.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder
from codedgrad.lab.decoders.candidates import FIXED


class Momentum(FixedDecoder):
    """g^ = R + rho average."""

    name = "momentum"
    choice = FIXED["momentum"]
