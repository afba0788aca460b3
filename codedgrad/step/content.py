"""Digests of what a dataset holds, from two of its samples.

Data in memory are compared as a whole where that is cheap. Workers that read other
files, or the same files in another order, go through other
samples with the same indices. In every epoch the workers therefore read the same two
samples, which follow from the seed and the epoch, with the same random numbers.

A dataset that returns something else in every reading has no digest. Samples without
numbers or texts in them (objects of the user's own) have a digest of their types only.
"""

from __future__ import annotations

import hashlib
import weakref
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codedgrad.data.samples import read_sample, tensors_of
from codedgrad.data.seeding import reading_rng, seed_sample, spread_bits
from codedgrad.errors import ConfigError, DataError
from codedgrad.row.digest import tensor_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

_SAMPLES = 2
_WHOLE_BYTES = 1 << 27  # tensors up to this size are looked at as a whole, once
_MOST_KNOWN = 8
# Digests of whole tensors, and these.
_known: dict[Any, tuple[int, tuple[weakref.ref[Tensor], ...]]] = {}
_WHOLE_LIST = 512  # samples in a list that is looked at as a whole
_MOST_BYTES = 1 << 20  # of one array or text
_SHOWN = 4096  # samples by which data sets of tensors are told apart


def content_digest(
    dataset: Any, seed: int, epoch: int, readings: int = 2
) -> int | None:
    """Return the digest of two samples, or None where there is none.

    The generators of random numbers are afterwards as before.

    Args:
        dataset: a map-style dataset or a tuple of tensors.
        seed: of the sampler.
        epoch: the samples are others in every epoch.
        readings: how often the samples are read; all readings must be the same.

    Raises:
        DataError: a sample could not be read.
    """
    tensors = tensors_of(dataset)
    size = len(dataset) if tensors is None else len(tensors[0])
    indices = [spread_bits(seed, epoch, i) % size for i in range(_SAMPLES)]
    if tensors is not None:  # nothing random, and no need to read it twice
        small = sum(t.numel() * t.element_size() for t in tensors) <= _WHOLE_BYTES
        if small:
            return _known_digest(tensors)
        texts = map(tensor_digest, [t[indices] for t in tensors])
        return zlib.crc32("".join(texts).encode())
    whole = _whole_digest(dataset)
    found: set[int] = set()
    with reading_rng():
        for _ in range(readings):
            found.add(_reading(dataset, seed, epoch, indices))
    return zlib.crc32(b"%d" % found.pop(), whole) if len(found) == 1 else None


def _reading(dataset: Any, seed: int, epoch: int, indices: list[int]) -> int:
    """Read some samples; return their digest."""
    digest = 0
    for index in indices:
        seed_sample(seed, epoch, index)
        try:
            sample = read_sample(dataset, index)
        except Exception as error:
            raise DataError(
                f"sample {index} could not be read: {type(error).__name__}: {error}"
            ) from error
        for piece in pieces(sample):
            digest = zlib.crc32(piece, digest)
    return digest


def _known_digest(tensors: tuple[Tensor, ...]) -> int:
    """Return the digest of whole tensors, computed once unless they have changed."""
    key = tuple((id(t), t.data_ptr(), t._version, t.shape) for t in tensors)
    digest, of = _known.pop(key, (0, ()))
    if not of or any(one() is not t for one, t in zip(of, tensors, strict=True)):
        digest = zlib.crc32("".join(map(tensor_digest, tensors)).encode())
        of = tuple(map(weakref.ref, tensors))
    if len(_known) == _MOST_KNOWN:
        del _known[next(iter(_known))]
    _known[key] = digest, of
    return digest


def _whole_digest(dataset: Any) -> int:
    """Return a digest of what is cheaply looked at as a whole.

    These are the indices of a Subset (some, if they are many), and the samples of a
    short list.
    """
    digest = 0
    while isinstance(dataset, torch.utils.data.Subset):
        every = max(1, len(dataset.indices) // _SHOWN)
        numbers = np.asarray(dataset.indices[::every], dtype=np.int64)
        digest = zlib.crc32(numbers.tobytes(), digest)
        dataset = dataset.dataset
    if isinstance(dataset, list) and len(dataset) <= _WHOLE_LIST:
        for sample in dataset:
            for piece in pieces(sample):
                digest = zlib.crc32(piece, digest)
    return digest


def pieces(value: Any) -> Iterable[bytes]:
    """Yield the bytes of a value: numbers, texts, arrays, and whatever holds these."""
    yield type(value).__name__.encode()
    if isinstance(value, Tensor):
        yield tensor_digest(value).encode()
    elif isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        if not array.dtype.hasobject:
            yield array.tobytes()[:_MOST_BYTES]
    elif isinstance(value, str):
        # Folders may be called otherwise on another machine.
        yield value.replace("\\", "/").rsplit("/", 1)[-1][:_MOST_BYTES].encode()
    elif value is None or isinstance(value, bool | int | float | complex | bytes):
        yield repr(value)[:_MOST_BYTES].encode()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from pieces(key)
            yield from pieces(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from pieces(item)
    elif hasattr(value, "tobytes") and hasattr(value, "mode"):  # an image of PIL
        yield value.tobytes()[:_MOST_BYTES]


def sample_digests(dataset: Any) -> bytes:
    """Return 8 bytes for each of some samples of a dataset of tensors; b"" of others.

    Two such data sets that are the same in another order have some of them in common,
    since as many are taken as make that likely for some million samples. Each tensor,
    if it is not constant, adds 8 bytes of its own: data sets that have one of them in
    common (the labels) are the same one, prepared in two ways.
    """
    tensors = tensors_of(dataset)
    if tensors is None:
        return b""
    size = len(tensors[0])
    chosen = torch.arange(0, size, max(1, size // _SHOWN))[:_SHOWN]
    columns = [t[chosen.to(t.device)].cpu().reshape(len(chosen), -1) for t in tensors]
    found = [tensor_digest(c).encode() for c in columns if bool((c != c[0]).any())]
    arrays = [c.contiguous().view(torch.uint8).numpy() for c in columns]
    found += [b"".join(r.tobytes() for r in row) for row in zip(*arrays, strict=True)]
    return b"".join(hashlib.blake2b(f, digest_size=8).digest() for f in found)


def in_memory(dataset: Any) -> bool:
    """Return whether reading a sample opens no file and asks no database."""
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    return isinstance(dataset, list) or tensors_of(dataset) is not None


def refuse_if_it_must_repeat(sampler: Any) -> None:
    """Refuse streams whose samples nobody else could read.

    Raises:
        ConfigError: with the remedy.
    """
    if getattr(sampler, "must_repeat", False):
        raise ConfigError(
            "the first sample of a stream was another one when the stream was opened "
            "again, or could not be read. With helpers=True any worker must get the "
            "same samples of a shard: let make(shard, epoch) seed what shuffles by "
            "them, or draw from the generators of torch, numpy or `random`; else use "
            "helpers=False"
        )
