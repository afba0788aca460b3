"""The rule by which a row is cut into buckets.

With n bytes in buckets of s bytes, each bucket costs a latency a. The last bucket is
ready only when the backward ends, so its time a + b s cannot be hidden. The sum of
both,

    a n / s + b s,    is least at    s = sqrt((a / b) n).

This is the size if the user gives none. `codedgrad.exchange.link` measures a and b in
the job itself. The first bucket is a quarter of that size, so that the exchange begins
early, and so is the last bucket, so that the exchange ends early. Then every cut moves
to the end of a tensor, if one is near by, because a bucket with even the first few
elements of a tensor has to wait for that tensor's gradient.
"""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Elements; the engine's slices begin at multiples of it.
GRAIN = 16
# a / b in MiB, if it is not measured. It stands for a network on which an exchange of
# 4 KB takes 0.28 ms, and one of 40 MiB 30 ms.
LATENCY_MB = 0.37
# Bytes of gradients. With fewer, one or two buckets are as good as any other size, so
# nothing is measured.
WORTH_MEASURING = 4 << 20
# Bounds on what the rule may choose.
_LEAST_MB, _MOST_BUCKETS = 0.25, 64
# Bytes of a bucket; the counts of MPI have 31 bits.
_MAX_BYTES = 1 << 30


def bucket_starts(
    count: int,
    itemsize: int,
    workers: int,
    bucket_mb: float | None,
    latency_mb: float = LATENCY_MB,
) -> list[int]:
    """Returns the boundaries of the buckets of `count` elements, from 0 to `count`.

    Args:
        count: the number of elements; fewer than GRAIN * workers are one bucket.
        itemsize: the bytes of an element.
        workers: every bucket is large enough for a slice of each of them.
        bucket_mb: the usual size of a bucket in MiB; None: by the rule above.
        latency_mb: a / b of the rule, in MiB.

    Raises:
        ConfigError: `bucket_mb` is out of range.
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
    if count < usual + ends:  # a second message would gain nothing
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
    """Returns the boundaries, moved to the nearest ends of tensors.

    A cut moves by at most half of what the smaller bucket beside it has to spare, so
    cuts stay in order, and every bucket stays large enough for a slice of each worker.

    Args:
        starts: the boundaries of the buckets, from `bucket_starts`.
        ends: where the tensors end, in rising order.
        itemsize: the bytes of an element.
        workers: as in `bucket_starts`.
    """
    moved, least = list(starts), GRAIN * workers
    for i in range(1, len(starts) - 1):
        before, cut, after = starts[i - 1 : i + 2]
        most = (min(cut - before, after - cut) - least) // 2
        if 2 * itemsize * max(cut - before, after - cut) > _MAX_BYTES:
            continue
        at = bisect.bisect_left(ends, cut)
        shifts = [end - cut for end in ends[max(0, at - 1) : at + 1]]
        shift = min(shifts, key=abs, default=0)
        if abs(shift) <= most:
            moved[i] = cut + shift
    return moved
