"""Objects as bytes that say what they hold, so that reading them executes nothing.

    bytes = kind, length of the text, text (JSON), bytes of all tensors in order

In the text every value that JSON does not have is a list with the name of its kind and
its parts: `["tuple", [...]]`, `["tensor", "float32", [2, 3]]`. A reader makes nothing
but numbers, texts, containers, tensors and arrays of it. Pickle, which runs what a
sender wants, is used only where both sides have asked for it by name.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN, _PICKLE = b"J", b"P"
_HEAD = 9  # bytes before the text
_SEQUENCES: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "size": torch.Size,
}
_NAMES: dict[type, str] = {
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    torch.Size: "size",
}


def encode(value: Any, *, allow_pickle: bool = False) -> bytes:
    """Return an object as bytes.

    Args:
        value: None, a number, text, bytes, tensor, array of numpy, or a list, tuple,
            set or dictionary of these.
        allow_pickle: use pickle for objects that hold something else.

    Raises:
        ConfigError: the object holds something else, or cannot be pickled.
    """
    blobs: list[bytes] = []
    try:
        text = json.dumps(_to_json(value, "the object", blobs)).encode()
    except (ConfigError, RecursionError) as error:
        if allow_pickle:
            return _pickled(value)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("the object holds itself, or is nested too deeply") from error
    return b"".join([_PLAIN, len(text).to_bytes(_HEAD - 1, "little"), text, *blobs])


def decode(data: bytes, *, allow_pickle: bool = False) -> Any:
    """Return the object that `encode` has written; tensors are on the CPU.

    Raises:
        ConfigError: it was pickled, and `allow_pickle` is False; or these are no bytes
            of `encode`.
    """
    if data[:1] == _PICKLE:
        if not allow_pickle:
            raise ConfigError(
                "a worker sent a pickled object, which can run code of the sender's; "
                "give allow_pickle=True on every worker to read it"
            )
        return pickle.loads(data[1:])
    if data[:1] != _PLAIN:
        raise ConfigError("these bytes are no object of codedgrad's")
    end = _HEAD + int.from_bytes(data[1:_HEAD], "little")
    return _from_json(json.loads(data[_HEAD:end]), _Reader(data, end))


class _Reader:
    """Takes the bytes of tensors, one after the other."""

    def __init__(self, data: bytes, begin: int) -> None:
        self._data, self._begin = data, begin

    def take(self, size: int) -> bytearray:
        end = self._begin + size
        if end > len(self._data):
            raise ConfigError("the bytes of an object end too early")
        taken = bytearray(self._data[self._begin : end])
        self._begin = end
        return taken


def _pickled(value: Any) -> bytes:
    try:
        return _PICKLE + pickle.dumps(value)
    except Exception as error:
        raise ConfigError(f"the object cannot be pickled: {error}") from error


def tensor_bytes(value: Tensor) -> bytes:
    """Return the elements of a dense tensor in row-major order."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tensor_of(data: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """Return the tensor with these bytes, on the CPU."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)


def dtype_named(name: str) -> torch.dtype:
    """Return the type of torch with this name, as in "float32".

    Raises:
        ConfigError: there is none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"there is no type {name!r} in this torch")
    return found


def _to_json(value: Any, where: str, blobs: list[bytes]) -> Any:
    """Return a value as JSON has it; the bytes of tensors are added to `blobs`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        items = [_to_json(v, f"{where}[{i}]", blobs) for i, v in enumerate(value)]
        return ["list", items]
    if kind in _NAMES:
        items = [_to_json(v, f"{where}[{i}]", blobs) for i, v in enumerate(value)]
        return [_NAMES[kind], items]
    if kind in (dict, OrderedDict):
        pairs = [
            [
                _to_json(k, f"a key of {where}", blobs),
                _to_json(v, f"{where}[{k!r}]", blobs),
            ]
            for k, v in value.items()
        ]
        return ["dict" if kind is dict else "ordered", pairs]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind in (torch.dtype, torch.device):
        return [kind.__name__, str(value).removeprefix("torch.")]
    return _binary(value, where, blobs)


def _binary(value: Any, where: str, blobs: list[bytes]) -> Any:
    """Return what has bytes beside the text."""
    if type(value) in (bytes, bytearray):
        blobs.append(bytes(value))
        return [type(value).__name__, len(value)]
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            raise ConfigError(f"{where} is a tensor that is sparse or quantised")
        blobs.append(tensor_bytes(value))
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape)]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufcSUmM":
        blobs.append(value.tobytes())
        kind = "scalar" if isinstance(value, np.generic) else "array"
        return [kind, value.dtype.str, list(value.shape)]
    raise ConfigError(
        f"{where} is of type {type(value).__module__}.{type(value).__qualname__}, "
        f"wanted numbers, texts, bytes, tensors, arrays and lists, tuples, sets or "
        f"dictionaries of these; give allow_pickle=True on every worker to send any "
        f"object, whose sender can then run code on the receivers"
    )


def _from_json(value: Any, reader: _Reader) -> Any:
    if not isinstance(value, list):
        return value
    kind, *parts = value
    if kind == "list":
        return [_from_json(v, reader) for v in parts[0]]
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([_from_json(v, reader) for v in parts[0]])
    if kind in ("dict", "ordered"):
        pairs = [(_from_json(k, reader), _from_json(v, reader)) for k, v in parts[0]]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    if kind == "complex":
        return complex(*parts)
    if kind == "dtype":
        return dtype_named(parts[0])
    if kind == "device":
        return torch.device(parts[0])
    if kind in ("bytes", "bytearray"):
        taken = reader.take(parts[0])
        return taken if kind == "bytearray" else bytes(taken)
    return _tensor_from_json(kind, parts[0], parts[1], reader)


def _tensor_from_json(kind: str, name: str, shape: list[int], reader: _Reader) -> Any:
    count = int(np.prod(shape, dtype=np.int64))
    if kind == "tensor":
        dtype = dtype_named(name)
        return tensor_of(reader.take(count * dtype.itemsize), dtype, shape)
    if kind in ("array", "scalar"):
        as_numpy = np.dtype(name)
        data = reader.take(count * as_numpy.itemsize)
        array = np.frombuffer(data, as_numpy) if data else np.empty(0, as_numpy)
        array = array.reshape(shape)
        return array if kind == "array" else array[()]
    raise ConfigError(f"an object holds something of the unknown kind {kind!r}")
