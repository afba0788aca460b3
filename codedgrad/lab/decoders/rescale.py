"""Rescale: late shards are taken to be like the others, as with backup workers.

J. Chen, X. Pan, R. Monga, S. Bengio, R. Jozefowicz, "Revisiting Distributed Synchronous
SGD", 2016.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder
from codedgrad.lab.decoders.candidates import FIXED


class Rescale(FixedDecoder):
    """g^ = R / (1 - rho)."""

    name = "rescale"
    choice = FIXED["rescale"]
