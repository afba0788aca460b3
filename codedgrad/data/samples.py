"""Single samples of a dataset."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import TensorDataset

from codedgrad.errors import ConfigError


def tensors_of(dataset: Any) -> tuple[torch.Tensor, ...] | None:
    """Return the tensors of which samples are rows; None for any other dataset.

    A subclass of TensorDataset, or of tuple, that changes the samples is such another
    dataset.
    """
    if isinstance(dataset, tuple):
        kind: Any = type(dataset)
        same = kind.__getitem__ is tuple.__getitem__ and kind.__len__ is tuple.__len__
        return dataset if same else None
    plain = (
        isinstance(dataset, TensorDataset)
        and type(dataset).__getitem__ is TensorDataset.__getitem__
        and not hasattr(dataset, "__getitems__")
    )
    return dataset.tensors if plain else None


def read_sample(dataset: Any, index: int) -> Any:
    """Return one sample of a dataset."""
    if isinstance(dataset, tuple) and tensors_of(dataset) is not None:
        return tuple(t[index] for t in dataset)
    return dataset[index]


def dataset_size(dataset: Any, batch_size: int, *, repeats: bool = False) -> int:
    """Return the number of samples; with `repeats` a step may have more of them.

    Raises:
        ConfigError: the dataset has no length, or fewer samples than one step takes.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(dataset, tuple) and tensors_of(dataset) is not None:
        others = {type(t).__name__ for t in dataset if not isinstance(t, torch.Tensor)}
        if others or not dataset:
            raise ConfigError(
                f"a tuple of tensors was wanted as a dataset, this one holds "
                f"{', '.join(sorted(others)) or 'nothing'}; make them tensors "
                f"(torch.as_tensor), or give a list of samples"
            )
        lengths = {len(t) for t in dataset}
        if len(lengths) != 1:
            raise ConfigError(f"tensors of different lengths: {sorted(lengths)}")
        size = lengths.pop()
    elif hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        size = len(dataset)
    else:
        raise ConfigError(
            f"{type(dataset).__name__} has no length or no indexing; any worker must "
            f"be able to read any sample: use a map-style dataset"
        )
    if size < (1 if repeats else batch_size):
        raise ConfigError(
            f"the dataset has {size} samples, fewer than the {batch_size} of one step; "
            f"lower batch_size"
        )
    return size
