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

`codedgrad.decoders.record`, which makes recordings, imports torch; nothing else here
does.
"""

from __future__ import annotations

from codedgrad.decoders.arrivals import Arrivals, Memory, tiles_of
from codedgrad.decoders.base import Decoder, Estimate
from codedgrad.decoders.learned import Learned
from codedgrad.decoders.least_squares import OnlineLeastSquares
from codedgrad.decoders.momentum import Momentum
from codedgrad.decoders.network import Network
from codedgrad.decoders.replay import Recording, erasures, load
from codedgrad.decoders.rescale import Rescale
from codedgrad.decoders.saga import Saga
from codedgrad.decoders.shrink import Shrink
from codedgrad.decoders.stale import Stale
from codedgrad.decoders.zero import Zero

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
