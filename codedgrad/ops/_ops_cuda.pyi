"""Types of the CUDA kernels' Python module; see csrc/ops_cuda_bindings.cpp."""

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

DEVICE_SUM_BYTES: int

def sums_host_memory(device: int) -> bool: ...
def engine_calls() -> dict[str, int]: ...
def start_sum(
    device: int,
    is_double: bool,
    program: list[int],
    inputs: list[int],
    out: int,
    out2: int,
    count: int,
) -> int: ...
def sum_done(ticket: int) -> int: ...
def gram_workspace(count: int) -> int: ...
def gram(
    inputs: list[int],
    type: str,  # noqa: A002
    count: int,
    out: int,
    workspace: int,
    stream: int,
) -> None: ...
