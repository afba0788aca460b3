"""SAGA-like: stale fill, corrected by how much the others have changed since.

A. Defazio, F. Bach, S. Lacoste-Julien, "SAGA: A Fast Incremental Gradient Method With
Support for Non-Strongly Convex Composite Objectives", 2014.

With last_missing and last_arrived the means of h over the missing and the arrived:
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder


class Saga(FixedDecoder):
    """g^ = R + rho (A + last_missing - last_arrived)."""

    name = "saga"
