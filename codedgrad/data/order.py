"""Orders of samples, and how a step's samples are cut into parts."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

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


def order_checksum(*orders: NDArray[np.int64]) -> int:
    """Return a checksum of some hundred places of an order, or of several."""
    checksum = 0
    for order in orders:
        some = order[:: max(1, len(orders) * len(order) // 1024)]
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


def described(sampler: Any, order: int, epoch: int) -> list[tuple[str, str]]:
    """Return what both samplers tell of themselves; `order` is a checksum."""
    values = {
        "samples": sampler._size,
        "batch_size": sampler.batch_size,
        "sampler seed": sampler.seed,
        "shuffle": sampler._shuffle,
        "drop_last": sampler._drop_last,
        "epoch": epoch,
        "order of samples": f"{order:08x}",
    }
    return [(name, str(value)) for name, value in values.items()]
