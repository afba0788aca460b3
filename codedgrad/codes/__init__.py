"""Gradient codes. They need numpy only and know no torch, no MPI and no gradients."""

from __future__ import annotations

from codedgrad.codes.code import Code, Decoding, Row
from codedgrad.codes.cyclic import cyclic
from codedgrad.codes.families import FAMILIES, parse
from codedgrad.codes.fractional import fractional
from codedgrad.codes.scheduled import scheduled
from codedgrad.codes.spread import spread, usual_pieces
from codedgrad.codes.tree import SumTree
from codedgrad.codes.uncoded import uncoded

__all__ = [
    "FAMILIES",
    "Code",
    "Decoding",
    "Row",
    "SumTree",
    "cyclic",
    "fractional",
    "parse",
    "scheduled",
    "spread",
    "uncoded",
    "usual_pieces",
]
