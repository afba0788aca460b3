"""SAGA-like fill: stale fill, corrected by how much the others have changed since.

A. Defazio, F. Bach, S. Lacoste-Julien, "SAGA: A Fast Incremental Gradient Method With
Support for Non-Strongly Convex Composite Objectives", 2014.

Here last_missing and last_arrived are the means of the remembered gradients h over the
missing and the arrived shards.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder
from codedgrad.lab.decoders.candidates import FIXED


class Saga(FixedDecoder):
    """g^ = R + rho (A + last_missing - last_arrived)."""

    name = "saga"
    choice = FIXED["saga"]
