"""Types of the kernels' Python module; see csrc/ops_bindings.cpp."""

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
) -> bool: ...
def changes(
    buffers: list[tuple[int, int, int, str]],
    type: str,  # noqa: A002
    row: int,
    into_row: bool,
) -> None: ...
def copies(buffers: list[tuple[int, int, int, str]], back: bool) -> None: ...
