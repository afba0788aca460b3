"""Estimates of the batch's gradient from what has arrived, in numpy.

    arrivals = Arrivals.of(rows, fraction)          # [shards, D], [shards]
    estimate = Learned(tiles).estimate(arrivals, memory)
    estimate.gradient, estimate.predicted, estimate.bound

Every decoder is a choice of the coefficients c of

    g^ = R + rho sum_i c_i v_i

where R is what arrived, rho is the missing share, and v is the span of `gram.SPAN` (the
mean of the arrived, recent results, what is remembered of the missing). An estimate's
`predicted` is the expected |g^ - g|^2 / |g|^2; rows that come late teach it.
`replay.play` plays a recorded run (`load`) back with some shards late, and
`evaluate.errors` judges the decoders on it.

`record` and `tasks`, which make recordings, import torch; nothing else in this folder
does.
"""

from __future__ import annotations

from codedgrad.lab.decoders.arrivals import Arrivals, Memory, tiles_of
from codedgrad.lab.decoders.base import Decoder, Estimate
from codedgrad.lab.decoders.learned import Learned
from codedgrad.lab.decoders.least_squares import OnlineLeastSquares
from codedgrad.lab.decoders.momentum import Momentum
from codedgrad.lab.decoders.network import Network
from codedgrad.lab.decoders.replay import Recording, erasures, load
from codedgrad.lab.decoders.rescale import Rescale
from codedgrad.lab.decoders.saga import Saga
from codedgrad.lab.decoders.shrink import Shrink
from codedgrad.lab.decoders.stale import Stale
from codedgrad.lab.decoders.zero import Zero

__all__ = [
    "Arrivals",
    "Decoder",
    "Estimate",
    "Learned",
    "Memory",
    "Momentum",
    "Network",
    "OnlineLeastSquares",
    "Recording",
    "Rescale",
    "Saga",
    "Shrink",
    "Stale",
    "Zero",
    "erasures",
    "load",
    "tiles_of",
]
