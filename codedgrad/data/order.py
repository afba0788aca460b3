"""Orders of samples, and how a step's samples are cut into parts."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def permutation(
    size: int, seed: int, epoch: int, *shard: int, shuffle: bool
) -> NDArray[np.int64]:
    """Return the order of an epoch's samples, or of a shard's in the epoch.

    It follows from (seed, epoch, shard) alone.
    """
    if not shuffle:
        return np.arange(size)
    generator = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, epoch, *shard]))
    )
    return generator.permutation(size)


def even(total: int, parts: int) -> list[int]:
    """Return the sizes of `parts` parts of `total`.

    They are as even as possible, and larger ones come first.
    """
    each, extra = divmod(total, parts)
    return [each + (part < extra) for part in range(parts)]


class Cuts(NamedTuple):
    """Where the steps of an epoch, or of a shard's samples in it, begin and end.

    A rest of a single sample would be a batch of one, of which batch norm makes
    nothing. It goes with the step before, where steps have more than one sample.

    Attributes:
        total: the samples.
        each: samples of a step.
        drop_last: whether a rest is left out.
    """

    total: int
    each: int
    drop_last: bool = False

    @property
    def steps(self) -> int:
        """The number of steps."""
        full, rest = divmod(self.total, self.each)
        alone = rest == 1 and full > 0 and self.each > 1
        return full + (rest > 0 and not self.drop_last and not alone)

    def begin(self, step: int) -> int:
        """Return the first sample of a step; one past the last after the last step."""
        if step < self.steps:
            return step * self.each
        return self.total if not self.drop_last else self.steps * self.each

    def slice(self, step: int) -> slice:
        """Return the samples of a step; there are none after the last one."""
        return slice(self.begin(step), self.begin(step + 1))


def part_sizes(total: int, parts: int, usual: int) -> list[int]:
    """Return the sizes of the parts of a step, or of a shard of it.

    In the short last step of an epoch, parts of a single sample would be too small for
    batch norm where the parts of all other steps have more. Then as many parts as have
    two samples are spread over the step, and the others are empty.

    Args:
        total: the samples of this step.
        parts: the number of parts.
        usual: the samples of a step that is not the last.
    """
    filled = total // 2
    if total >= 2 * parts or usual < 2 * parts or filled == 0:
        return even(total, parts)
    sizes = [0] * parts
    for i, size in enumerate(even(total, filled)):
        sizes[i * parts // filled] = size
    return sizes


def check_enough(
    samples: int, parts: int, shards: int | None, *, whole: bool, step: str
) -> None:
    """Check that a step has a sample for each pass that is always made.

    Where own passes are whole, only helpers make more of them than there are shards,
    and some of these may be empty.

    Args:
        samples: of a step, or what it has that is not divided.
        parts: micro-batches of a step.
        shards: of the code; None: each part is one.
        whole: whether own passes are whole.
        step: the words for the step.

    Raises:
        ConfigError: there are too few.
    """
    if whole and shards is not None:
        if samples < shards:
            raise ConfigError(f"{step} cannot be cut into {shards} shards: raise it")
    elif samples < parts:
        raise ConfigError(
            f"{step} cannot be cut into {parts} micro-batches: raise it, or lower the "
            f"code's `micro`"
        )


def sizes_of(total: int, parts: int, shards: int | None, usual: int) -> list[int]:
    """Return the sizes of a step's parts; with `shards`, its shards are even first."""
    if shards is None:
        return part_sizes(total, parts, usual)
    each, of_shard = parts // shards, usual // shards
    return [
        n
        for shard in part_sizes(total, shards, usual)
        for n in part_sizes(shard, each, of_shard)
    ]


def order_checksum(*orders: NDArray[np.int64], every: bool = False) -> int:
    """Return a checksum of some hundred places of an order, or of every place."""
    checksum = 0
    for order in orders:
        some = order[:: 1 if every else max(1, len(orders) * len(order) // 1024)]
        checksum = zlib.crc32(np.ascontiguousarray(some).tobytes(), checksum)
    return checksum


def label_numbers(by: Any, size: int, partition: str) -> NDArray[np.int64] | None:
    """Return the labels `by` as numbers in the order of the labels."""
    if by is None:
        return None
    if partition != "fixed":
        raise ConfigError('`by` says how fixed parts are cut; add partition="fixed"')
    labels = np.asarray(by)
    if labels.shape != (size,):
        raise ConfigError(
            f"`by` is {labels.shape}, wanted one label for each of the {size} samples"
        )
    return np.unique(labels, return_inverse=True)[1]


def described(sampler: Any, checksum: int, epoch: int) -> list[tuple[str, str]]:
    """Return what both samplers tell of themselves; `checksum` is the order's."""
    order = sampler._order
    values = {
        "samples": order.size,
        "batch_size": sampler.batch_size,
        "sampler seed": sampler.seed,
        "shuffle": order.shuffle,
        "drop_last": sampler._drop_last,
        "epoch": epoch,
        f"order of samples{order.whose}": f"{checksum:08x}",
    }
    return [(name, str(value)) for name, value in values.items()]
