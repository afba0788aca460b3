"""Rescale: the late are taken to be like the others, as with backup workers.

J. Chen, X. Pan, R. Monga, S. Bengio, R. Jozefowicz, "Revisiting Distributed Synchronous
SGD", 2016.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder


class Rescale(FixedDecoder):
    """g^ = R / (1 - rho)."""

    name = "rescale"
