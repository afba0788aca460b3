"""Metrics and their sums: what a function returns for a batch, read, added, flattened.

Numbers are added as Python adds them. Tensors of integers are added as int64, those of
floats as float64, in the order of `codedgrad.inference.parts`. In a row every sum is a
run of float64: an integer v travels as two, floor(v / 2^32) and v mod 2^32, whose sums
over all parts are exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LOW = 1 << 32  # an integer's lower part is below it
_LARGEST = 1 << 63
_REMEDY = "return the same metrics, of the same shapes, for every batch"


@dataclass(frozen=True)
class Each:
    """Results that are not summed but put one behind the other, in the data's order.

    Attributes:
        values: a tensor whose first dimension goes with the samples (its length may
            differ from batch to batch), or a list of numbers, texts or tensors.
    """

    values: Tensor | list[Any]


class Entry(NamedTuple):
    """What one metric is, the same in every batch.

    Attributes:
        name: its name.
        kind: "int" or "float", which are summed, or "tensor" or "list", which are not.
        shape: of a sum; of one sample's part of a tensor.
        dtype: of such a tensor; "" of others.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""

    @property
    def summed(self) -> bool:
        """Whether it is summed."""
        return self.kind in ("int", "float")

    def __str__(self) -> str:
        """Completes the sentence "the metric is ..."."""
        if self.kind == "list":
            return "Each(a list)"
        what = "one number" if not self.shape else f"of shape {self.shape}"
        if self.kind == "tensor":
            return f"Each(a tensor), {self.dtype}, of which each sample's is {what}"
        return f"{self.kind}, {what}"


Schema = tuple[Entry, ...]
Values = list[Any]  # one for each entry of a schema


def read(result: Any, batch: int) -> tuple[Schema, Values]:
    """Returns what the function returned for a batch, and what it is.

    Raises:
        ConfigError: it is no dictionary of numbers and tensors.
    """
    if not isinstance(result, dict) or not result:
        raise ConfigError(
            f"the function returned {type(result).__qualname__} for batch {batch}, "
            f"wanted a dictionary of sums, e.g. "
            f'{{"right": (out.argmax(1) == y).sum(), "count": len(y)}}'
        )
    entries, values = [], []
    for name, value in result.items():
        if not isinstance(name, str):
            raise ConfigError(f"names of metrics are texts, got {name!r}")
        entry, held = _read(name, value)
        entries.append(entry)
        values.append(held)
    return tuple(entries), values


def check_same(usual: Schema, schema: Schema, batch: int) -> None:
    """Compares a batch's metrics with those of the batches before.

    Raises:
        ConfigError: they are others, and the message says which.
    """
    if usual == schema:
        return
    before, now = {e.name: e for e in usual}, {e.name: e for e in schema}
    for name in [*before, *now]:
        if before.get(name) == now.get(name):
            continue
        was, got = before.get(name, "missing"), now.get(name, "missing")
        raise ConfigError(
            f"the metric {name!r} is {got} in batch {batch}, and {was} in another; "
            f"{_REMEDY}"
        )
    raise ConfigError(
        f"batch {batch} has the metrics in the order {list(now)}, and another one has "
        f"{list(before)}; {_REMEDY}"
    )


def _read(name: str, value: Any) -> tuple[Entry, Any]:
    if isinstance(value, Each):
        return _read_each(name, value.values)
    if isinstance(value, (np.ndarray, np.generic)):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, Tensor):
        return _read_tensor(name, value.detach())
    if isinstance(value, (bool, int)):
        return Entry(name, "int"), int(value)
    if isinstance(value, float):
        return Entry(name, "float"), value
    raise _not_summed(name, type(value).__qualname__)


def _read_tensor(name: str, value: Tensor) -> tuple[Entry, Any]:
    if value.is_complex() or value.layout is not torch.strided or value.is_quantized:
        raise _not_summed(name, f"tensor of {value.dtype} and {value.layout}")
    kind, wanted = "int", torch.int64
    if value.is_floating_point():
        kind, wanted = "float", torch.float64
    entry = Entry(name, kind, tuple(value.shape))
    if value.device.type == "mps":  # which knows no float64
        value = value.cpu()
    if not value.shape and value.device.type == "cpu":
        return entry, value.item()
    return entry, value.to(wanted, copy=True)  # the function may use its own again


def _read_each(name: str, values: Any) -> tuple[Entry, Any]:
    if isinstance(values, list):
        return Entry(name, "list"), [list(values)]
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values)
    if not isinstance(values, Tensor) or values.dim() == 0:
        raise ConfigError(
            f"Each of the metric {name!r} takes a tensor with a dimension of samples, "
            f"or a list, got {type(values).__qualname__}"
        )
    shape, dtype = tuple(values.shape[1:]), str(values.dtype).removeprefix("torch.")
    return Entry(name, "tensor", shape, dtype), [values.detach().clone()]


def _not_summed(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"the metric {name!r} is a {what}, which cannot be summed; return numbers, "
        f"tensors of integers or floats, or codedgrad.Each(...) of results by sample"
    )


def add(left: Values, right: Values) -> Values:
    """Returns the sums of two neighbouring runs of batches."""
    return [a + b for a, b in zip(left, right, strict=True)]


def size_of(schema: Schema) -> int:
    """Returns the number of float64 that the sums of a schema take in a row."""
    return sum(_size(entry) for entry in schema)


def _size(entry: Entry) -> int:
    if not entry.summed:
        return 0
    return int(np.prod(entry.shape, dtype=np.int64)) * (2 if entry.kind == "int" else 1)


def flatten(schema: Schema, values: Values) -> NDArray[np.float64]:
    """Returns the sums of a part as one run of float64, [size_of(schema)].

    Raises:
        ConfigError: an integer is beyond 2^63.
    """
    pieces: list[NDArray[np.float64]] = [np.empty(0)]
    for entry, value in zip(schema, values, strict=True):
        if not entry.summed:
            continue
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise ConfigError(f"the metric {entry.name!r} is {value}, beyond 2^63")
        host = value.cpu().numpy() if isinstance(value, Tensor) else value
        if entry.kind == "float":
            pieces.append(np.asarray(host, np.float64).reshape(-1))
            continue
        whole = np.asarray(host, np.int64).reshape(-1)
        pieces += [(whole >> 32).astype(np.float64)]
        pieces += [(whole & (_LOW - 1)).astype(np.float64)]
    return np.concatenate(pieces)


def unflatten(schema: Schema, total: NDArray[np.float64]) -> dict[str, Any]:
    """Returns the sums by name, of the decoded run of `flatten`.

    Numbers come back as int and float, tensors as int64 and float64 on the CPU.
    """
    found: dict[str, Any] = {}
    place = 0
    for entry in schema:
        if not entry.summed:
            continue
        run = total[place : place + _size(entry)]
        place += _size(entry)
        if entry.kind == "float":
            # One zero and one NaN: those of the processor depend on what met what.
            clean = np.where(np.isnan(run), np.nan, run) + 0.0
            found[entry.name] = _shaped(entry, torch.from_numpy(clean))
        elif not entry.shape:
            found[entry.name] = int(run[0]) * _LOW + int(run[1])
        else:
            high, low = run.astype(np.int64).reshape(2, -1)
            found[entry.name] = _shaped(entry, torch.from_numpy(high * _LOW + low))
    return found


def _shaped(entry: Entry, flat: Tensor) -> Any:
    return flat.reshape(entry.shape) if entry.shape else flat.item()


def text_of(schema: Schema) -> str:
    """Returns a schema as text, for `schema_of`."""
    return json.dumps([list(entry) for entry in schema], separators=(",", ":"))


def schema_of(text: str) -> Schema:
    """Returns the schema of a text.

    Raises:
        ValueError: it is none.
    """
    found = [Entry(n, k, tuple(s), d) for n, k, s, d in json.loads(text)]
    return tuple(found)


def joined(entry: Entry, pieces: Sequence[Any]) -> Any:
    """Returns the results of all batches, from the lists that `read` gave, in order."""
    flat = [piece for run in pieces for piece in run]
    if entry.kind == "list":
        return [value for piece in flat for value in piece]
    if not flat:
        dtype = getattr(torch, entry.dtype)
        return torch.empty((0, *entry.shape), dtype=dtype)
    return torch.cat(flat)
