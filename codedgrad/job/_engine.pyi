"""Types of the C++ engine's Python module; see csrc/bindings.

`tests/exchange/test_stubs.py` compares names and parameters with the module.

Where steps, buckets, rows and workers are given, they are numbers as in
`codedgrad.exchange.base`. Every call that may wait releases Python's lock.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codedgrad.errors import WorkerError

EngineFailure = WorkerError  # the job has failed, on this worker or another
DEVICE_SUM_BYTES: int  # of the struct that CUDA kernels get (csrc/ops/device_sum.h)
MOST_DEVICE_INPUTS: int  # the most rows that a device's kernel sums at once

# ---- transports (csrc/bindings/transports.cpp) ----

class Transport:
    """A transport by itself, for its contract test; see csrc/transport/transport.h."""

    rank: int
    size: int
    max_tag: int
    def send(self, dest: int, tag: int, data: memoryview, id: int) -> None: ...  # noqa: A002
    def probe(self) -> tuple[int, int, int] | None:
        """Take a message; returns its source, tag and bytes."""
    def receive(self, into: memoryview, id: int) -> None: ...  # noqa: A002
    def poll(self) -> list[int]: ...
    def drop(self, rank: int) -> None: ...
    def pending(self) -> int: ...

def foreign_transport(capsule: Any) -> Transport:
    """The transport that another extension module has put into a capsule."""

def sockets_transport(rank: int, fds: list[int], max_tag: int = ...) -> Transport:
    """Messages over sockets; by rank, those that are connected, -1 for oneself.

    The transport takes the sockets over.
    """

class LocalHub:
    """What the ranks of one process exchange through; messages come late at random.

    Tags above `max_tag` are refused.
    """

    def __init__(
        self, size: int, max_delay_us: int = 0, seed: int = 0, max_tag: int = ...
    ) -> None: ...

def local_transport(hub: LocalHub, rank: int) -> Transport: ...

# ---- the engine (csrc/bindings/engine.cpp) ----

class EngineStats:
    polls: int  # rounds of the engine's loop
    pool_bytes: int  # memory held
    in_flight: int  # sends and receives not completed
    held: int  # sends to workers that stand still, not begun
    unpinned_bytes: int  # memory that a device would rather have pinned
    sessions: int  # neither closed nor dropped by all workers

class DeviceCalls:
    """A device's runtime as addresses of C functions; see csrc/engine/device.h."""

    def __init__(
        self,
        *,
        device: int,
        not_ready: int,
        pin_flags: int,
        set_device: int,
        pin: int,
        unpin: int,
        query: int,
        allocate: int,
        release: int,
        take_error: int,
        start_sum: int,
        sum_done: int,
    ) -> None: ...

class Engine:
    """A worker's engine: a thread that communicates without Python's lock."""

    rank: int
    size: int
    failed: bool
    failure: str
    departed: list[int]
    @staticmethod
    def over_foreign(capsule: Any) -> Engine: ...
    @staticmethod
    def over_sockets(rank: int, fds: list[int], max_tag: int = ...) -> Engine: ...
    @staticmethod
    def over_sockets_of_some(
        rank: int, fds: list[int], max_tag: int, least: int
    ) -> Engine:
        """As `over_sockets`, and `survive` has been called before it begins."""
    @staticmethod
    def over_local(hub: LocalHub, rank: int) -> Engine: ...
    def announced(self) -> dict[int, bytes]:
        """What workers have published for the next `gather`."""
    def publish(self, data: bytes) -> None: ...
    def gather(self, timeout_s: float) -> tuple[list[bytes | None] | None, list[int]]:
        """By worker, what all have published; None on time-out, and who is missing.

        A worker that is lost may have published nothing, None.
        """
    def survive(self, least: int) -> None:
        """From now on workers may be lost, as long as so many are left."""
    def lost(self) -> dict[int, float]:
        """When workers were lost, by `time.monotonic`."""
    def fail(self, text: str) -> None:
        """End the job on every worker, with `text` as the reason."""
    def bind_device(self, calls: DeviceCalls) -> int:
        """Bind a device, once for good; returns the number of the one that is bound."""
    def stop(self, timeout_s: float) -> bool:
        """Say goodbye and end the thread; True when nothing is under way any more."""
    def stats(self) -> EngineStats: ...

# ---- one model's exchange (csrc/bindings/exchange.cpp) ----

class Buffer:
    """Memory of the engine's pool; it goes back there when the last owner drops it."""

    bytes: int
    address: int
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Plan:
    """When arrivals cover the batch, and how the sum is formed from them."""

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
    """Totals of an exchange since its start."""

    rows_useful: int
    rows_redundant: int
    rows_late: int
    slices_decoded: int
    slices_on_device: int
    bytes_sent: int
    decode_s: float
    rows_refused: int
    slices_settled: int
    slices_deputised: int
    messages_sent: int
    notes_sent: int
    bytes_copied: int
    choose_s: float
    learn_s: float
    slices_biased: int

class Arrival:
    step: int
    source: int
    row: int
    kind: int
    time_s: float

class Settled:
    step: int
    bucket: int
    missing: float
    predicted: float
    bound: float
    truth: float
    noise: float
    true_noise: float

class SessionSettings:
    """The settings of an `Exchange`; the same on every worker, but for `memory`."""

    def __init__(
        self,
        *,
        plan: Plan,
        bucket_starts: list[int],
        dtype: str = "float32",
        window: int = 16,
        first_step: int = 0,
        wire: str = "float32",
        narrow_buckets: int = 0,
        approximate: Approximate | None = None,
        memory: str = "host",
        deputy_s: float = 0.0,
        needs_all: str = "it has no deputies",
    ) -> None:
        """Check the names.

        Args:
            plan: of the code.
            bucket_starts: rising from 0 to the payload's size, in elements.
            dtype: "float32" or "float64", of rows in memory.
            window: how many steps may be open at once, at least 2.
            first_step: the number of the first step.
            wire: "float32" (as in memory), "bfloat16" or "float16".
            narrow_buckets: how many buckets, the first ones, travel as `wire`.
            approximate: how a step may end without a cover; None: never.
            memory: where rows and sums lie: "host", "pinned" or "device".
            deputy_s: the least seconds after which another worker decodes the slice of
                an owner that is silent; 0: never.
            needs_all: why no worker may be lost for good; "" if the others go on.
        """

class Exchange:
    """A session of the engine: see `codedgrad.exchange.base` for when to call what."""

    long_addresses: bool  # each message has a header (csrc/engine/mailbox.h)
    def __init__(self, engine: Engine, settings: SessionSettings) -> None: ...
    def close(self) -> None:
        """Free the session, and its number. Collective.

        An exchange that Python drops keeps its number; its memory is freed once every
        worker has dropped it.
        """
    def use_device_sums(self, always: bool) -> str:
        """Let the device sum where it is faster, or `always`; returns why it cannot."""
    def begin(self, step: int, timeout_s: float) -> tuple[bool, list[int]]:
        """Whether there is room in the window, else the workers that lag."""
    def wait(self, step: int, timeout_s: float, seen: int = ...) -> bool:
        """Waits until `step` is decoded; returns whether it is.

        Args:
            step: the step.
            timeout_s: how long at most.
            seen: ends the wait when others have lacked rows of it more often.
        """

    def needs(self, step: int) -> int: ...
    def done(self, step: int) -> bool: ...
    def has(self, step: int, row: int) -> bool: ...
    def begun(self, step: int, row: int) -> bool: ...
    def missing(self, step: int) -> list[int]:
        """The owners whose slices are not here."""
    def take(self, step: int) -> Buffer: ...
    def acquire(self) -> Buffer:
        """Memory for one row."""
    def post(
        self,
        step: int,
        row: int,
        data: Buffer,
        bucket: int = -1,
        event: int = 0,
        waits: bool = False,
    ) -> None:
        """Send one bucket of a row, or all (-1), once the device's `event` is done.

        With `waits` the caller waits for the step next, and so sends by itself.
        """
    def past_half(self, step: int) -> bool: ...
    def drain_settled(self) -> list[Settled]: ...
    def decoder_states(self) -> list[list[float]]: ...
    def restore_decoders(self, state: list[float]) -> None: ...
    def drain_arrivals(self) -> list[Arrival]: ...
    def counters(self) -> Counters: ...

# ---- estimates (csrc/bindings/decoder.cpp) ----

class Network:
    """The decoder's network; shapes as in `codedgrad.exchange.pretrained`."""

    def __init__(
        self, w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: ArrayLike
    ) -> None: ...

class Approximate:
    """How a step may end without a cover; see csrc/engine/estimator.h."""

    def __init__(
        self,
        *,
        max_error: float,
        max_noise: float,
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
    ) -> None:
        """Check the sizes.

        Args:
            max_error: the largest bound on the relative squared error to settle with.
            max_noise: the largest share of the batch's own noise that an estimate may
                add, and the largest missing share; at least 1e300: none.
            patience: what an owner waits for the rest, as a share of the time until
                half of the batch was there.
            compensate: add what estimates missed to the next step.
            left: of the summation tree, by node, like the next four.
            right: the right child; -1 where there is none, as in `left`.
            parent: the parent; -1 for the root.
            start: the first part of the batch below the node.
            stop: the part behind its last one.
            units: the nodes that workers send when nobody is late.
            weights: their shares of the batch.
            tensors: ends of the gradient's tensors in a row, in elements.
            network: of the learned decoder.
        """

class DecoderShards:
    def __init__(
        self,
        alpha: list[float],
        weight: list[float],
        seen: list[bool],
        age: list[float],
    ) -> None: ...

class DecoderProblem:
    def __init__(self, base: NDArray[np.float64], shards: DecoderShards) -> None: ...

class DecoderChoice:
    c: NDArray[np.float64]
    predicted: float
    bound: float
    noise: float
    expected: float

class LearnedDecoder:
    """The learned decoder by itself, to compare it with its reference in Python."""

    def __init__(self, tiles: int, network: Network) -> None: ...
    def choose(self, problem: DecoderProblem) -> DecoderChoice: ...
    def look(
        self,
        step: int,
        base: NDArray[np.float64],
        shards: DecoderShards,
        scale: float,
    ) -> None: ...
    def lean(
        self, problem: DecoderProblem, chosen: DecoderChoice, most: float
    ) -> None: ...
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
