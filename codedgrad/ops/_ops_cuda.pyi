"""Types of the CUDA kernels' Python module; see csrc/bindings/ops_cuda.cpp.

Vectors are given as addresses, as in `_ops`, and streams as cudaStream_t.
`tests/ops/test_emulated_cuda.py` compares names and parameters with the module.
"""

DEVICE_SUM_BYTES: int  # of the struct of csrc/ops/device_sum.h

def weighted_sum(
    weights: list[float],
    inputs: list[int],
    type: str,  # noqa: A002
    out: int,
    out_type: str,
    count: int,
    wire: str,
    stream: int,
) -> None: ...

INLINE_PIECES: int  # of `encode`, for which no table on the device is needed

def encode(
    pieces: bytes,
    table: int,
    weight: float,
    sums: list[int],
    type: str,  # noqa: A002
    out: int,
    wire: str,
    flag: int,
    stream: int,
) -> None:
    """Write a run of a row; `pieces` are from `_ops.table`, `table` their address.

    A value at the address `flag` becomes 1 where `_ops.encode` returns False.
    """

def gram_workspace(count: int) -> int:
    """Doubles of device memory that `gram` wants as `workspace`."""

def gram(
    inputs: list[int],
    type: str,  # noqa: A002
    count: int,
    out: int,
    workspace: int,
    stream: int,
) -> None: ...
def sums_host_memory(device: int) -> bool:
    """Whether kernels reach registered host memory by the host's own addresses."""

def engine_calls() -> dict[str, int]:
    """Addresses of `start_sum` and `sum_done` for the engine."""

def start_sum(
    device: int,
    is_double: bool,
    program: list[int],
    inputs: list[int],
    out: int,
    out2: int,
    count: int,
) -> int:
    """Start a sum by a program of csrc/ops/cpu/sums.h; returns a ticket."""

def sum_done(ticket: int) -> int:
    """Returns cudaErrorNotReady (600) while it is under way; then 0 or an error."""
