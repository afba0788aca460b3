"""Momentum fill: the late are taken to be like recent decoded gradients.

The running average is that of SGD with momentum 0.9.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder


class Momentum(FixedDecoder):
    """g^ = R + rho average."""

    name = "momentum"
