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
