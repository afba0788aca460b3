"""Zero fill: late shards are left out.

N. Giladi et al., "DropCompute: simple and more robust distributed synchronous
training", 2023; every sum that simply ends at a deadline does the same.
"""

from __future__ import annotations

from codedgrad.lab.decoders.base import FixedDecoder
from codedgrad.lab.decoders.candidates import FIXED


class Zero(FixedDecoder):
    """g^ = R."""

    name = "zero"
    choice = FIXED["zero"]
