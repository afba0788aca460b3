"""Batches of a dataset, the same ones in whichever process they are read.

Every sample is read with generators that are seeded from (seed, epoch, index), and a
batch is collated with generators that are seeded from its first sample. So random
augmentation is the same on any worker and in any loader process, and does not change
what the passes draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset, default_collate

from codedgrad.data.samples import read_sample, tensors_of
from codedgrad.data.seeding import drawn_since, reading_rng, seed_sample, states
from codedgrad.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.data.loader import Request

# Types of tensors of which rows are copied by `index_select`.
_COPIED = {
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
}


def _nothing() -> None:
    pass


class Reader:
    """Reads batches of one dataset. Loader processes have copies of it.

    Attributes:
        dataset: the dataset.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any] | None,
        seed: int,
        size: int,
    ) -> None:
        """Take a map-style dataset or a tuple of tensors; None collates as torch.

        `size` is the dataset's. The number of a sample is its index, or for one that
        comes again in an epoch the index and a multiple of the size.
        """
        self.dataset = dataset
        self._size = size
        self.collate = collate_fn or default_collate
        self._seed = seed
        self._draws = False  # whether reading several samples at once drew numbers

    @property
    def rows(self) -> tuple[torch.Tensor, ...] | None:
        """The tensors whose rows are the samples, as they are; None: there are none."""
        return tensors_of(self.dataset) if self.collate is default_collate else None

    def __getitem__(self, request: Request) -> Any:
        """Return what `batch` returns, as a DataLoader asks for it."""
        return self.batch(request, _nothing)

    def batch(self, request: Request, between: Callable[[], None]) -> Any:
        """Return the collated batch of some samples of an epoch.

        Args:
            request: the epoch, and the samples by number.
            between: called before each sample; what it raises ends the reading.

        Raises:
            DataError: a sample could not be read, or they could not be collated.
        """
        epoch, samples = request
        tensors = self.rows
        if tensors is not None:
            index = torch.from_numpy(samples % self._size)
            return tuple([_rows(t, index) for t in tensors])
        numbers = samples.tolist()
        indices = [n % self._size for n in numbers]
        with reading_rng():
            items = self._items(epoch, numbers, between)
            seed_sample(self._seed, epoch, ~numbers[0])
            what = f"samples {_few(indices)} of the dataset"
            return collated(self.collate, items, what)

    def _items(
        self, epoch: int, numbers: list[int], between: Callable[[], None]
    ) -> list[Any]:
        data = self.dataset
        indices = [n % self._size for n in numbers]
        # A Subset asks its dataset for several samples only if that can give them.
        several = hasattr(data, "__getitems__") and not _plain(data)
        between()
        if several and not self._draws:
            seed_sample(self._seed, epoch, numbers[0])
            before = states()
            try:
                items = list(data.__getitems__(indices))
            except Exception as error:
                raise _unreadable(f"samples {_few(indices)}", error) from error
            self._draws = drawn_since(before)
            if not self._draws:
                return items
        items = []
        for number, index in zip(numbers, indices, strict=True):
            between()
            seed_sample(self._seed, epoch, number)
            try:
                one = (
                    data.__getitems__([index])[0]
                    if several
                    else read_sample(data, index)
                )
            except Exception as error:
                raise _unreadable(f"sample {index}", error) from error
            items.append(one)
        return items

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        """Return a batch as the arguments of a loss function.

        It is called with what a loop over a DataLoader would unpack: a tuple's members
        are arguments of their own, and so are the members of the list into which
        torch's default collate function turns samples that are tuples or lists.
        Whatever else a collate function returns, a list included, is one argument.
        """
        if isinstance(batch, list) and self.collate is default_collate:
            return tuple(batch)
        return batch if isinstance(batch, tuple) else (batch,)


def _rows(t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return some rows of a tensor, by the fastest of two ways to the same bits."""
    plain = type(t) is torch.Tensor and t.layout is torch.strided and t.is_cpu
    if plain and t.dtype in _COPIED and t.is_contiguous() and not t.requires_grad:
        return t.index_select(0, index)  # a third of the time of t[index]
    return t[index]


def collated(collate: Callable[[list[Any]], Any], items: list[Any], what: str) -> Any:
    """Return what a collate function makes of samples, which `what` names.

    Raises:
        DataError: it raised an error.
    """
    try:
        return collate(items)
    except Exception as error:
        raise DataError(
            f"{what} could not be collated: {type(error).__name__}: {error}"
        ) from error


def _plain(data: Any) -> bool:
    """Return whether a Subset only hands single samples on."""
    while type(data) is Subset:
        data = data.dataset
        if not hasattr(data, "__getitems__"):
            return True
    return False


def _unreadable(what: str, error: Exception) -> DataError:
    return DataError(
        f"{what} of the dataset could not be read: {type(error).__name__}: {error}"
    )


def _few(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
