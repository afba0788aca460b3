"""The Python face of the engine: one exchange, in tensors and codes.

Order of a step: `begin`, then `post` once for every finished item of the worker's
work (or `post_bucket` once for each of its buckets), `wait` until decoded,
`take`. `done` and `has` may be asked at any time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from codedgrad.errors import ConfigError, EnvironmentSetupError, WorkerError
from codedgrad.job import environment
from codedgrad.job.runtime import Runtime
from codedgrad.job.waiting import Waiting
from codedgrad.row import devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from codedgrad.codes import Code
    from codedgrad.row.layout import Layout

log = logging.getLogger("codedgrad")

_ALL = -1  # all buckets


class RowBuffer(NamedTuple):
    """Memory of one row. The engine shares it from `post` until all of it is sent."""

    buffer: Any
    tensor: Tensor  # to be written: the row, where the model is
    host: Tensor  # the engine's memory, see `devices`; for a model on the CPU the same


class Exchange:
    """Rows out, the decoded sum in, for one model and one code."""

    def __init__(
        self,
        runtime: Runtime,
        code: Code,
        payload: Layout,
        *,
        window: int,
        first_step: int = 0,
        approximate: Any = None,
    ) -> None:
        """Open a session of the engine. All workers do so in the same order.

        `approximate`: see `codedgrad.exchange.settle.engine_settings`; None: exact.

        Raises:
            ConfigError: the engine refuses the settings (window, buckets, rows).
        """
        from codedgrad.job import _engine

        self._told_unpinned = False
        self._failure = _engine.EngineFailure
        self._runtime = runtime
        self._code = code
        self._dtype = payload.dtype
        self._starts = payload.bucket_starts
        self._gradients = payload.gradients
        self._required = [
            [
                self.row_of(worker, i)
                for i, row in enumerate(code.rows[worker])
                if row.after < code.required[worker]
            ]
            for worker in range(code.workers)
        ]
        if code.linear and payload.narrow_buckets:
            raise ConfigError(
                f"{code.describe()} decodes with real coefficients, which would "
                f'amplify the rounding of wire="{payload.wire}"; use wire="float32" '
                f"or a code whose rows are plain sums, like codes.spread"
            )
        plan = _plan_of(code)
        plain = payload.narrow_buckets == 0 and approximate is None
        sums = plain and plan.most_inputs <= _engine.MOST_DEVICE_INPUTS
        self._bind_device(payload, sums=sums)
        try:
            self._core = _engine.Exchange(
                runtime.engine,
                payload.dtype == torch.float64,
                payload.bucket_starts,
                window,
                first_step,
                plan,
                payload.wire,
                payload.narrow_buckets,
                approximate,
                self._memory,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self._device_sums:
            self._use_device_sums()

    def _bind_device(self, payload: Layout, *, sums: bool) -> None:
        """Where rows lie. `sums`: the device's kernels can decode them."""
        self._memory, self._device_sums = "host", False
        self._staging: devices.Staging | None = None
        self._device = devices.runtime_of(payload.device)
        if self._device is None:
            return
        calls, wanted = self._device.engine_calls(), environment.gpu_decode()
        bound = self._runtime.engine.bind_device(**calls)
        self._device_sums = bool(sums and calls["start_sum"]) and wanted != "0"
        same = bound == calls["device"]  # as of the first model on a device
        self._memory = devices.rows_memory(
            self._device, calls, sums=sums and same, wanted=wanted
        )
        self._staging = devices.Staging(
            self._device, payload.device, payload.count, payload.dtype
        )

    def _use_device_sums(self) -> None:
        """Let the device sum where that is faster, or wanted; check that it can."""
        rank, always = self._runtime.rank, environment.gpu_decode() == "1"
        try:
            why = self._call(self._core.use_device_sums, always)
        except RuntimeError as error:
            if isinstance(error, WorkerError):
                raise
            raise EnvironmentSetupError(f"worker {rank}: {error}") from None
        if why:
            log.warning("worker %d decodes on the CPU: %s", rank, why)

    def row_of(self, worker: int, row: int) -> int:
        """The engine's number of a row: its tree node, or its place in the matrix."""
        if self._code.linear:
            return self._code.row_index(worker, row)
        return self._code.row_node(worker, row)

    def row_buffer(self) -> RowBuffer:
        """Memory for one row, contents undefined."""
        if self._staging is None or self._device is None:
            buffer = self._core.acquire()
            host = self._tensor(buffer)
            return RowBuffer(buffer, host, host)
        with self._device.on():
            buffer = self._core.acquire()
        return RowBuffer(buffer, self._staging.row(), self._tensor(buffer))

    def begin(self, step: int) -> float:
        """Open `step`; wait while a worker is a whole window behind.

        Returns:
            Seconds waited for workers that lag.

        Raises:
            WorkerError: the job failed, or the wait took too long.
        """
        waiting = None
        while True:
            patience_s = 0.0 if waiting is None else 1.0
            ok, behind = self._call(self._core.begin, step, patience_s)
            if ok:
                return 0.0 if waiting is None else waiting.seconds()
            if waiting is None:
                waiting = Waiting(self._runtime, f"to begin step {step}")
            else:
                waiting.tick(behind)

    def forwarded(self, step: int) -> bool:
        """True when `step` was decoded before this worker began it; asked once."""
        return self.done(step)

    def post(self, step: int, row: int, data: RowBuffer) -> None:
        """Send a row; `data` must not be written any more."""
        event = 0
        if self._staging is not None:
            event = self._staging.out(data.tensor, data.host, 0, self._starts[-1])
        self._call(self._core.post, step, row, data.buffer, _ALL, event)

    def post_bucket(self, step: int, row: int, bucket: int, data: RowBuffer) -> None:
        """Send one bucket of a row, each once; that part of `data` stays as it is."""
        event = 0
        if self._staging is not None:
            begin, end = self._starts[bucket : bucket + 2]
            event = self._staging.out(data.tensor, data.host, begin, end)
        self._call(self._core.post, step, row, data.buffer, bucket, event)

    def done(self, step: int) -> bool:
        """True when `step` is decoded (or the job failed). A few 100 ns."""
        return bool(self._core.done(step))

    def past_half(self, step: int) -> bool:
        """True when half of the batch has arrived here (never in an exact session)."""
        return bool(self._core.past_half(step))

    def settled(self) -> list[Any]:
        """New estimates: step, bucket, missing, predicted, bound, truth (-1: unknown).

        An estimate comes twice, the second time with the truth, if that gets known.
        """
        return list(self._core.drain_settled())

    def decoder_states(self) -> list[list[float]]:
        """What the decoders of the own slices have learned, by bucket."""
        return [list(s) for s in self._call(self._core.decoder_states)]

    def restore_decoders(self, state: list[float]) -> None:
        """Let all of them begin from `state`.

        Raises:
            ConfigError: it has another length, or is not finite.
        """
        try:
            self._call(self._core.restore_decoders, state)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def has(self, step: int, row: int) -> bool:
        """True when `row` has arrived here or is implied by what has."""
        return bool(self._core.has(step, row))

    def begun(self, step: int, row: int) -> bool:
        """True when some bucket of `row` has arrived here, or is implied."""
        return bool(self._core.begun(step, row))

    def wait(self, step: int, timeout_s: float) -> bool:
        """Wait until `step` is decoded, at most `timeout_s`; False on time-out."""
        return bool(self._call(self._core.wait, step, timeout_s))

    def wait_all(self, step: int) -> None:
        """Wait until `step` is decoded, saying for whom."""
        waiting = Waiting(self._runtime, f"in step {step}", quiet_s=5.0)
        while not self.wait(step, 1.0):
            waiting.tick(self.blockers(step))

    def required_rows(self) -> list[list[int]]:
        """By worker, the rows that it sends in every step."""
        return self._required

    def blockers(self, step: int) -> list[int]:
        """Workers whose own rows are not here; else the owners of missing slices."""
        late = [
            worker
            for worker, required in enumerate(self._required)
            if not all(self.has(step, row) for row in required)
        ]
        return late or list(self._core.missing(step))

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        """The decoded sum, where the model is, and its tail, on the CPU.

        They are the caller's own; their memory is used again when dropped.
        """
        host = self._tensor(self._core.take(step))
        tail = host[self._gradients :]
        if self._staging is None:
            return host, tail
        self._told_unpinned = self._told_unpinned or self._warn_unpinned()
        if self._memory == "device":
            tail = self._staging.to_host(tail)
        return self._staging.back(host), tail

    def _tensor(self, buffer: Any) -> Tensor:
        """Memory of the engine's as a vector, which keeps it."""
        if self._memory != "device":
            return torch.frombuffer(buffer, dtype=self._dtype)
        assert self._device is not None
        return self._device.view(buffer, self._dtype)

    def _warn_unpinned(self) -> bool:
        if self._staging is None or not self._runtime.engine.stats().unpinned_bytes:
            return False
        log.warning(
            "worker %d could not pin all memory for copies to its device; they are "
            "slower so. Raise the limit of locked memory (ulimit -l)",
            self._runtime.rank,
        )
        return True

    def arrivals(self) -> Iterator[tuple[int, int, int, int, float]]:
        """New (step, worker, row, kind, monotonic seconds).

        Kind 0: useful; 1: redundant; 2: late; 3: refused (NaN or Inf).
        """
        for a in self._core.drain_arrivals():
            yield a.step, a.source, a.row, a.kind, a.time_s

    def counters(self) -> dict[str, float]:
        """Totals since the start: rows by kind, slices decoded, bytes, seconds."""
        c = self._core.counters()
        names = (
            "rows_useful",
            "rows_redundant",
            "rows_late",
            "slices_decoded",
            "slices_on_device",
            "bytes_sent",
            "decode_s",
            "rows_refused",
            "slices_settled",
            "choose_s",
            "learn_s",
        )
        return {name: getattr(c, name) for name in names}

    def close(self) -> None:
        """Free the session. Collective: no message of it may be under way any more."""
        if self._staging is not None:
            self._staging.drain()
        self._runtime.gather(b"", "to close an exchange")
        self._core.close()
        self._runtime.gather(b"", "to close an exchange")

    def _call(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except self._failure as failure:
            raise WorkerError(str(failure)) from None


def _plan_of(code: Code) -> Any:
    """What the engine knows of a code."""
    from codedgrad.job import _engine

    if code.linear:
        return _engine.linear_plan(code.matrix(), code.workers - code.tolerance())
    tree = code.tree
    rows = {
        code.row_node(worker, i)
        for worker, own in enumerate(code.rows)
        for i in range(len(own))
    }
    return _engine.tree_plan(
        tree.left, tree.right, tree.parent, tree.root, sorted(rows)
    )
