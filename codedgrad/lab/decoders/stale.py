"""Stale fill: a late shard counts with the last gradient that is known of it.

A. Severinson, E. Rosnes, S. El Rouayheb, A. Graell i Amat, "DSAG: A mixed
synchronous-asynchronous iterative method for straggler-resilient learning", 2023.

A shard that was never seen counts as the arrived ones do.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder
from codedgrad.lab.decoders.candidates import FIXED


class Stale(FixedDecoder):
    """g^ = R + sum_j delta_j w_j h_j."""

    name = "stale"
    choice = FIXED["stale"]
