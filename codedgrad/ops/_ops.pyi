"""Types of the CPU kernels' Python module; see csrc/bindings/ops.cpp.

Vectors are given as addresses. `type` is the type of the inputs, "float32", "float64",
"bfloat16" or "float16"; `wire` is "", "bfloat16" or "float16". csrc/ops/cpu says what
the kernels compute. `tests/exchange/test_stubs.py` compares names and parameters with
the module.
"""

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
    leaf: list[tuple[int, int]],
    weight: float,
    sums: list[int],
    type: str,  # noqa: A002
    out: int,
    wire: str,
    streamed: bool,
) -> bool:
    """`leaf`: address and elements of each piece; True when all is finite."""

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
