"""What a step may ask of an exchange, whoever implements it.

The order of a step: `begin`, `forwarded`; then for every item of the worker's work
`row_buffer` and either one `post` or one `post_bucket` per bucket; then `wait` or
`wait_all` until the step is decoded, and `take`. The questions `done`, `has`, `begun`
and `past_half` may be asked at any time in between.

Only the thread that trains calls an exchange.

The row of a shard may differ by a rounding from the sum of its pieces. So an exchange
decodes each slice on one worker only and gives its result to all: two workers that
decoded the same slice could end with different bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from torch import Tensor

CLOSING = "to close an exchange"
USEFUL, REDUNDANT, LATE, REFUSED = range(4)  # kinds of arrivals


class RowBuffer(NamedTuple):
    """Memory of one row. The exchange shares it from `post` until all of it is sent."""

    buffer: Any  # the engine's handle
    tensor: Tensor  # where the step writes the row: on the model's device
    host: Tensor  # the engine's own memory; on the CPU the same tensor


class Arrival(NamedTuple):
    """A row that has reached this worker."""

    step: int
    worker: int  # who sent it
    row: int
    kind: int  # USEFUL, REDUNDANT, LATE or REFUSED (it holds NaN or Inf)
    time_s: float  # on the monotonic clock


class Settled(NamedTuple):
    """An estimate that this worker, an owner, has settled for in one bucket."""

    step: int
    bucket: int
    missing: float  # share of the batch that was missing
    predicted: float  # relative squared error, as predicted
    bound: float  # the bound on it that the decision used
    truth: float  # the error itself; -1 while it is not known
    noise: float  # what it adds to the batch's noise, as predicted
    true_noise: float  # the same by the error itself, once it is known


class Exchange(Protocol):
    """Sends rows and brings decoded sums, for one model and one code.

    Attributes:
        outlives: whether the exchange goes on where a worker is lost for good.
    """

    outlives: bool

    def row_of(self, worker: int, row: int) -> int:
        """Returns the number by which a row is posted and asked for.

        The step calls it once per row, when it is set up.

        Args:
            worker: the worker of the code that sends the row.
            row: the row's place in `code.rows[worker]`.
        """

    def row_buffer(self) -> RowBuffer:
        """Returns memory for one row, with undefined contents.

        A pass calls it for each item before it computes, and once more for each row
        that combines several items.
        """

    def begin(self, step: int) -> float:
        """Opens `step`, and waits while a worker is a whole window of steps behind.

        The step calls it first, once. A worker that is alone calls it again for a step
        that an exception has ended: what that step had sent is dropped.

        Returns:
            The seconds that it waited for workers that lag.

        Raises:
            WorkerError: the job failed, or the wait took too long.
        """

    def forwarded(self, step: int) -> bool:
        """Returns True when `step` was decoded before this worker began it.

        The step calls it once, right after `begin`; if True, it computes nothing.
        """

    def post(self, step: int, row: int, data: RowBuffer) -> None:
        """Sends a whole row. `data` must not be written any more.

        A pass calls it when an item is finished that was not sent bucket by bucket.

        Raises:
            WorkerError: the job failed.
        """

    def post_bucket(self, step: int, row: int, bucket: int, data: RowBuffer) -> None:
        """Sends one bucket of a row. That part of `data` must not be written any more.

        The row's writer calls it during the backward pass, once for every bucket, as
        soon as the bucket is ready.

        Raises:
            WorkerError: the job failed.
        """

    def done(self, step: int) -> bool:
        """Returns True when `step` is decoded, or when the job has failed.

        A pass asks at every module boundary, so it takes a few 100 ns.
        """

    def past_half(self, step: int) -> bool:
        """Returns True when half of the batch has arrived in every slice of this owner.

        A late pass asks before it sends the parts that it has finished. In an exact
        exchange the answer is always False.
        """

    def has(self, step: int, row: int) -> bool:
        """Returns True when `row` has arrived here, or is implied by what has.

        A helper asks before and during an item: what is here need not be computed.
        """

    def lost(self) -> list[int]:
        """Returns the workers that are lost for good.

        A helper asks before it chooses an item: nobody waits for theirs.
        """

    def begun(self, step: int, row: int) -> bool:
        """Returns True when some bucket of `row` has arrived here, or is implied.

        A helper asks when it chooses an item: such a row will be complete soon.
        """

    def wait(self, step: int, timeout_s: float) -> bool:
        """Waits until `step` is decoded; returns False when `timeout_s` runs out first.

        A helper calls it for the time of its patience.

        Raises:
            WorkerError: the job failed.
        """

    def wait_all(
        self, step: int, help_out: Callable[[int], None] | None = None
    ) -> None:
        """Waits until `step` is decoded, and logs for whom it waits.

        The step calls it when it has nothing more to compute. Where deputies decode,
        rows may be needed again that had arrived here, or rows that no back-up has.
        Then `help_out` is called, with the number of times so far that somebody has
        said so in this step.

        Raises:
            WorkerError: the job failed, or the wait took too long.
        """

    def take(self, step: int) -> tuple[Tensor, NDArray[Any]]:
        """Returns the decoded sum and closes the step. Called once, when it is decoded.

        Returns:
            The sum, [count] on the model's device, and its tail (all but the
            gradients) on the CPU. Both belong to the caller; their memory is used
            again once they are dropped.
        """

    def required_rows(self) -> list[list[int]]:
        """Returns, by worker, the numbers of the rows that it sends in every step.

        The report calls it to tell own rows from back-ups.
        """

    def arrivals(self) -> Iterable[Arrival]:
        """Returns the arrivals since the last call. The report calls it each step."""

    def settled(self) -> list[Settled]:
        """Returns the new estimates of this owner. The report calls it each step.

        An estimate comes a second time, with its true error, if that gets known.
        """

    def decoder_states(self) -> list[list[float]]:
        """Returns what the decoders of this worker's slices have learned, by bucket.

        Checkpoints call it between two steps.
        """

    def restore_decoders(self, state: list[float]) -> None:
        """Makes all decoders of this worker begin from `state`.

        Called before the first step after a checkpoint was loaded.

        Raises:
            ConfigError: `state` has another length, or is not finite.
        """

    def counters(self) -> dict[str, float]:
        """Returns totals since the start: rows by kind, slices, bytes and seconds."""

    def close(self, why: str = CLOSING) -> None:
        """Frees the exchange. Collective: afterwards none of its messages is under way.

        Called at the end of training, and before another exchange replaces this one.

        Args:
            why: completes the sentence "worker 0 waits ...".

        Raises:
            MismatchError: the workers have made different numbers of steps.
        """
