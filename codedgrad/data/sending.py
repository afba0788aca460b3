"""What loader processes send: that it can be sent, and what to do where it cannot.

A batch is pickled by a thread of torch's queue. Where that fails the batch is lost,
and whoever waits for it waits for ever. So what is no tensor, number or text is tried
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from codedgrad.errors import DataError

if TYPE_CHECKING:
    from codedgrad.data.loader import BatchReader, Request

_PLAIN = (Tensor, PackedSequence, str, bytes, bool, int, float, complex, type(None))
_NO_MEMORY = (
    "loader processes hand on tensors through shared memory (/dev/shm), and there is "
    "none left, or it cannot be written. In a container, give it more (docker run "
    "--shm-size=8g, or --ipc=host); or lower prefetch_factor, or use num_workers=0"
)
_NO_START = (
    "a loader process could not be started. What it gets (the dataset, collate_fn, "
    "worker_init_fn) must be picklable where processes are not forked: define it at "
    "the top of a module, without lambdas; or use num_workers=0"
)


class Sending:
    """A reader in a loader process, whose batches can be sent."""

    def __init__(self, reader: BatchReader) -> None:
        """Take the reader."""
        self._reader = reader

    def __getitem__(self, request: Request) -> Any:
        """Return a batch.

        Raises:
            DataError: it could not be read, or cannot be sent.
        """
        batch = self._reader[request]
        check_sendable(batch)
        return batch


def check_sendable(value: Any) -> None:
    """Refuse what cannot be pickled.

    Raises:
        DataError: the message has the type of what cannot be.
    """
    if isinstance(value, _PLAIN):
        return
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return
    if type(value) in (list, tuple):
        for item in value:
            check_sendable(item)
        return
    if type(value) is dict:
        for key, item in value.items():
            check_sendable(key)
            check_sendable(item)
        return
    items = value.values() if isinstance(value, Mapping) else ()
    try:
        ForkingPickler.dumps(value)
    except Exception as error:
        for item in items:  # names what is inside, if it is that
            check_sendable(item)
        raise DataError(
            f"a loader process cannot send what it has read: {type(value).__name__} "
            f"cannot be pickled ({type(error).__name__}: {error}). Return tensors, "
            f"numbers and texts, or use num_workers=0"
        ) from error


def remedy_of(error: BaseException, *, starting: bool = False) -> str:
    """Return what to do about an error of loader processes, or ""."""
    text = str(error).lower()
    no_memory = ("shared memory", "no space left", "read-only file system", "/dev/shm")
    if any(words in text for words in no_memory):
        return _NO_MEMORY
    return _NO_START if starting else ""
