"""Zero fill: the late are left out.

N. Giladi et al., "DropCompute: simple and more robust distributed synchronous
training", 2023, and every sum that simply ends at a deadline.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder


class Zero(FixedDecoder):
    """g^ = R."""

    name = "zero"
