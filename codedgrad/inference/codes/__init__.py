"""Codes for queries, behind one interface: the field's, and those that mix nothing.

`encode, compute, decode, cost, availability` are what `interface` asks of a code.
`plain` are replicas and the stand-in, `interpolated` Berrut's and splines, `split` the
exact split code, `parity` and `mixed` learned parities, which `fitting` trains.
"""

from codedgrad.inference.codes.fitting import fit
from codedgrad.inference.codes.interface import QueryCode
from codedgrad.inference.codes.interpolated import Berrut, Splines, SystematicBerrut
from codedgrad.inference.codes.mixed import Mixed
from codedgrad.inference.codes.parity import Collage, ParitySum
from codedgrad.inference.codes.plain import BatchReplica, Replica, StandInCode
from codedgrad.inference.codes.split import SplitLinear, split_of

__all__ = [
    "BatchReplica",
    "Berrut",
    "Collage",
    "Mixed",
    "ParitySum",
    "QueryCode",
    "Replica",
    "Splines",
    "SplitLinear",
    "StandInCode",
    "SystematicBerrut",
    "fit",
    "split_of",
]
