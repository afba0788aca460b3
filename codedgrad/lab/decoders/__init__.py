"""Estimates of the batch's gradient from whoever has arrived. numpy only.

    arrivals = Arrivals.of(rows, fraction)          # [shards, D], [shards]
    estimate = Learned(tiles).estimate(arrivals, memory)
    estimate.gradient, estimate.predicted, estimate.bound

Every decoder is a choice of coefficients c of

    g^ = R + rho sum_i c_i v_i

with R what arrived, rho the missing share, v the span of `gram.SPAN` (the mean of the
arrived, recent results, what is remembered of the missing). Its `predicted` is the
expected |g^ - g|^2 / |g|^2, taught by rows that come late. A recorded run (`load`) is
played back with shards late by `replay.play` and judged by `evaluate.errors`.

`codedgrad.lab.decoders.record`, which makes recordings, imports torch; nothing else here
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
