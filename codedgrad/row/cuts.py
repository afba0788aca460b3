"""Where a payload is cut into buckets.

With n bytes in buckets of s, a bucket costs the latency a, and the last one, ready
when backward ends, cannot be hidden: its a + b s is waited for. The sum of both,

    a n / s + b s,    is least at    s = sqrt((a / b) n),

which is the rule where no size is given, with a and b as `codedgrad.exchange.link` finds them
in this job. The first bucket is a quarter of that, so that the exchange begins early,
and so is the last, so that it ends early. Then cuts move to where a tensor ends, if one
does so near by: a bucket with the first elements of a tensor waits for its gradient.
"""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

GRAIN = 16  # elements; the engine's slices begin at multiples of it
# a / b in MiB where it is not measured: 0.28 ms for 4 KB and 30 ms for 40 MiB.
LATENCY_MB = 0.37
# Below, one bucket or two are as good as any size, so nothing is measured.
WORTH_MEASURING = 4 << 20  # bytes
_LEAST_MB, _MOST_BUCKETS = 0.25, 64  # by rule
_MAX_BYTES = 1 << 30  # MPI counts are 31 bits


def bucket_starts(
    count: int,
    itemsize: int,
    workers: int,
    bucket_mb: float | None,
    latency_mb: float = LATENCY_MB,
) -> list[int]:
    """Boundaries of the buckets of `count` elements, from 0 to `count`.

    Args:
        count: elements; fewer than GRAIN * workers are one bucket.
        itemsize: bytes of one.
        workers: every bucket is large enough for a slice of each of them.
        bucket_mb: usual size of a bucket in MiB; None: by the rule above.
        latency_mb: a / b of the rule, in MiB.

    Raises:
        ConfigError: a size out of range.
    """
    if bucket_mb is None:
        bucket_mb = math.sqrt(latency_mb * count * itemsize / (1 << 20))
        least = max(_LEAST_MB, count * itemsize / (1 << 20) / _MOST_BUCKETS)
        bucket_mb = min(max(bucket_mb, least), 256.0)
    size = bucket_mb * (1 << 20)
    if not 0 < size <= _MAX_BYTES:
        raise ConfigError(
            f"bucket_mb must be in (0, 1024], or None for a size by rule; got "
            f"{bucket_mb}"
        )
    least = GRAIN * workers
    usual = max(least, int(size) // itemsize)
    ends = max(least, usual // 4)
    if count < usual + ends:  # two messages where one does
        most = _MAX_BYTES // itemsize
        return [0, count] if count <= most else [0, count // 2, count]
    rest = count - 2 * ends
    if rest < least:
        return [0, ends, count]
    inner = max(1, round(rest / usual), math.ceil(rest * itemsize / _MAX_BYTES))
    inner = min(inner, rest // least)
    return [0, *(ends + rest * i // inner for i in range(inner + 1)), count]


def at_ends(
    starts: Sequence[int], ends: Sequence[int], itemsize: int, workers: int
) -> list[int]:
    """Cuts moved to the nearest end of a tensor.

    A cut moves by at most half of what the smaller bucket beside it has to spare: cuts
    stay in order, and every bucket is large enough for a slice of each worker.

    Args:
        starts: boundaries of the buckets, from `bucket_starts`.
        ends: where the tensors end, rising.
        itemsize: bytes of an element.
        workers: as in `bucket_starts`.
    """
    moved, least = list(starts), GRAIN * workers
    for i in range(1, len(starts) - 1):
        before, here, after = starts[i - 1 : i + 2]
        most = (min(here - before, after - here) - least) // 2
        if 2 * itemsize * max(here - before, after - here) > _MAX_BYTES:
            continue
        at = bisect.bisect_left(ends, here)
        shifts = [end - here for end in ends[max(0, at - 1) : at + 1]]
        shift = min(shifts, key=abs, default=0)
        if abs(shift) <= most:
            moved[i] = here + shift
    return moved
