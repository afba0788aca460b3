"""Types of the C++ engine's Python module; see csrc/bindings.cpp."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

class EngineFailure(Exception): ...

def mpi_build_vendor() -> str: ...
def mpi_build_version() -> str: ...
def mpi_library_version() -> str: ...
def mpi_reads_cuda_memory() -> bool: ...

DEVICE_SUM_BYTES: int
MOST_DEVICE_INPUTS: int

class LocalHub:
    def __init__(self, size: int, max_delay_us: int = 0, seed: int = 0) -> None: ...

class EngineStats:
    polls: int
    pool_bytes: int
    in_flight: int

class Engine:
    rank: int
    size: int
    failed: bool
    failure: str
    departed: list[int]
    def announced(self) -> dict[int, bytes]: ...
    @staticmethod
    def over_mpi(fortran_comm: int) -> Engine: ...
    @staticmethod
    def over_local(hub: LocalHub, rank: int) -> Engine: ...
    def publish(self, data: bytes) -> None: ...
    def gather(self, timeout_s: float) -> tuple[list[bytes] | None, list[int]]: ...
    def fail(self, text: str) -> None: ...
    def bind_device(
        self,
        device: int,
        set_device: int,
        pin: int,
        unpin: int,
        query: int,
        pin_flags: int,
        not_ready: int,
        allocate: int,
        release: int,
        start_sum: int,
        sum_done: int,
        take_error: int,
    ) -> int: ...
    def stop(self, timeout_s: float) -> bool: ...
    def stats(self) -> EngineStats: ...

class Buffer:
    bytes: int
    address: int
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Plan:
    rows: int
    most_inputs: int

def tree_plan(
    left: ArrayLike,
    right: ArrayLike,
    parent: ArrayLike,
    root: int,
    rows: list[int] = ...,
) -> Plan: ...
def linear_plan(matrix: NDArray[np.float64], least: int) -> Plan: ...

class Counters:
    rows_useful: int
    rows_redundant: int
    rows_late: int
    slices_decoded: int
    slices_on_device: int
    bytes_sent: int
    decode_s: float
    rows_refused: int
    slices_settled: int
    choose_s: float
    learn_s: float

class Network:
    def __init__(
        self, w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: ArrayLike
    ) -> None: ...

class Approximate:
    def __init__(
        self,
        max_error: float,
        patience: float,
        compensate: bool,
        left: ArrayLike,
        right: ArrayLike,
        parent: ArrayLike,
        start: ArrayLike,
        stop: ArrayLike,
        units: list[int],
        weights: list[float],
        tensors: list[int],
        network: Network,
    ) -> None: ...

class Settled:
    step: int
    bucket: int
    missing: float
    predicted: float
    bound: float
    truth: float

class DecoderProblem:
    def __init__(
        self,
        base: NDArray[np.float64],
        alpha: list[float],
        weight: list[float],
        seen: list[bool],
        age: list[float],
    ) -> None: ...

class DecoderChoice:
    c: NDArray[np.float64]
    predicted: float
    bound: float

class LearnedDecoder:
    def __init__(self, tiles: int, network: Network) -> None: ...
    def choose(self, problem: DecoderProblem) -> DecoderChoice: ...
    def learn(
        self,
        problem: DecoderProblem,
        chosen: DecoderChoice,
        target: NDArray[np.float64],
        norm: NDArray[np.float64],
        cross: NDArray[np.float64],
    ) -> None: ...
    def replay(self, problem: DecoderProblem) -> None: ...
    def state(self) -> list[float]: ...
    def restore(self, state: list[float]) -> None: ...

class Arrival:
    step: int
    source: int
    row: int
    kind: int
    time_s: float

class Exchange:
    def __init__(
        self,
        engine: Engine,
        is_double: bool,
        bucket_starts: list[int],
        window: int,
        first_step: int,
        plan: Plan,
        wire: str = "float32",
        narrow_buckets: int = 0,
        approximate: Approximate | None = None,
        memory: str = "host",
    ) -> None: ...
    def close(self) -> None: ...
    def use_device_sums(self, always: bool) -> str: ...
    def begin(self, step: int, timeout_s: float) -> tuple[bool, list[int]]: ...
    def wait(self, step: int, timeout_s: float) -> bool: ...
    def done(self, step: int) -> bool: ...
    def has(self, step: int, row: int) -> bool: ...
    def begun(self, step: int, row: int) -> bool: ...
    def missing(self, step: int) -> list[int]: ...
    def take(self, step: int) -> Buffer: ...
    def acquire(self) -> Buffer: ...
    def post(
        self, step: int, row: int, data: Buffer, bucket: int = -1, event: int = 0
    ) -> None: ...
    def past_half(self, step: int) -> bool: ...
    def drain_settled(self) -> list[Settled]: ...
    def decoder_states(self) -> list[list[float]]: ...
    def restore_decoders(self, state: list[float]) -> None: ...
    def drain_arrivals(self) -> list[Arrival]: ...
    def counters(self) -> Counters: ...
