"""Types of the CPU kernels' Python module; see csrc/bindings/ops.cpp.

`codedgrad.ops.objects` says what the functions on lists of objects do.

Vectors are given as addresses. `type` is the type of the inputs, "float32", "float64",
"bfloat16" or "float16"; `wire` is "", "bfloat16" or "float16". csrc/ops/cpu says what
the kernels compute. `tests/exchange/test_stubs.py` compares names and parameters with
the module.
"""

from typing import Any

from torch import Tensor

def weighted_sum(
    weights: list[float],
    inputs: list[int],
    type: str,  # noqa: A002
    out: int,
    out_type: str,
    count: int,
    wire: str,
    threads: int,
) -> None: ...
def gram(
    inputs: list[int],
    type: str,  # noqa: A002
    count: int,
    out: int,
    threads: int,
) -> None: ...
def encode(
    leaf: list[tuple[int, int, str]],
    weight: float,
    sums: list[int],
    type: str,  # noqa: A002
    out: int,
    wire: str,
    streamed: bool,
) -> bool:
    """`leaf`: address (0: zeros), elements and type; True when all is finite."""

def table(
    gradients: Gradients,
    parameters: list[Tensor],
    tail: int,
    type: str,  # noqa: A002
    device: int,
) -> bytes | None:
    """The pieces for `_ops_cuda.encode`; None: one does not lie as in the row.

    `device` is DLPack's number: 1 for the CPU, 2 for CUDA.
    """

def table_of(leaf: list[tuple[int, int, str]]) -> bytes:
    """The pieces of a leaf, as above."""

def encode_gradients(
    gradients: Gradients,
    parameters: list[Tensor],
    tail: int,
    weight: float,
    sums: list[int],
    type: str,  # noqa: A002
    out: int,
    wire: str,
    streamed: bool,
) -> bool | None:
    """`encode` of the gradients there are; None: one does not lie as in the row."""

class Gradients:
    """Where gradients lie in a run of a row.

    A span is a parameter's index (less than 0: the tail), its first element there, and
    the number of elements. A kind is a parameter's number of elements, and the strides
    of its gradient.
    """

    def __init__(
        self, spans: list[tuple[int, int, int]], kinds: list[tuple[int, list[int]]]
    ) -> None: ...

class Places:
    """Shape, strides and first element of many tensors in one vector."""

    def __init__(self, places: list[tuple[list[int], list[int], int]]) -> None: ...
    def views(self, address: int, itemsize: int, owner: object) -> list[Tensor]: ...

class TensorMarks:
    """Shape, type, strides, device and, if wanted, version and address of tensors.

    Where a tensor cannot be described, `note` returns False and has noted nothing.
    """

    def __init__(self, versions: bool, addresses: bool) -> None: ...
    def note(self, tensors: list[Tensor]) -> bool: ...
    def note_one(self, index: int, tensor: Tensor) -> bool: ...
    def same(self, tensors: list[Tensor]) -> bool: ...
    def noted(self) -> list[tuple[int, int, int]]: ...

def unchanged(
    contents: tuple[list[Any], list[Any]],
    items: tuple[list[dict[Any, Any]], list[Any], list[Any]],
    flags: list[tuple[list[Any], str, list[Any]]],
    marks: list[tuple[TensorMarks, list[Tensor]]],
) -> bool:
    """`values_are`, `items_are`, several `reads` and `TensorMarks.same` in one call."""

def use_exchange(capsule: object) -> bool:
    """Take torch's functions from `__dlpack_c_exchange_api__`, if they are known."""

def values_of(dictionaries: list[Any]) -> list[Any]: ...
def values_are(dictionaries: list[Any], values: list[Any]) -> bool: ...
def items_are(
    dictionaries: list[dict[Any, Any]], keys: list[Any], values: list[Any]
) -> bool: ...
def read(objects: list[Any], name: str, call: bool) -> list[Any]: ...
def reads(objects: list[Any], name: str, call: bool, values: list[Any]) -> bool: ...
def all_none(objects: list[Any], name: str) -> bool: ...
def filled(objects: list[Any], name: str) -> list[bool]: ...
def assign(objects: list[Any], name: str, values: list[Any]) -> None: ...
def assign_all(objects: list[Any], name: str, value: object) -> None: ...

class BufferTable:
    """Buffers: address now, address before, elements, and "f", "d" or "q" (int64)."""

    def __init__(self, buffers: list[tuple[int, int, int, str]]) -> None: ...

def changes(
    table: BufferTable,
    type: str,  # noqa: A002
    row: int,
    into_row: bool,
) -> None:
    """Write the changes since before into a row, or apply those of a row."""

def copies(table: BufferTable, back: bool) -> None:
    """Copy now to before, or `back`."""
