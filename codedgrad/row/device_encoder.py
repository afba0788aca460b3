"""Encoding on a GPU: one launch per bucket, from a table of pointers.

    table = [address, elements, type of each gradient of the bucket]      (host)
    row_b = R(... R(R(w x) + s_last) ... + s_0)                           (device)

The kernel (csrc/ops/cuda/encode.cu) has the table among its arguments, so nothing is
copied to the device for it. A bucket of more tensors than fit there has its table in
the device's memory, which is copied, without a wait, only where an address or torch's
stream has changed.

Nothing here waits for the device. What is not finite sets a flag there, which is added
to the row's tail: whoever decodes the row sees it (`codedgrad.row.tail`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import EnvironmentSetupError
from codedgrad.ops.library import NAMES, kernels
from codedgrad.row import devices
from codedgrad.row.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Self

    from codedgrad.row.payload import Payload
    from codedgrad.row.runs import Run

log = logging.getLogger("codedgrad")

_CPU, _CUDA = 1, 2  # DLPack's numbers


class DeviceEncoder:
    """Encodes gradients on a device with a kernel; see `codedgrad.row.encoder`."""

    def __init__(self, payload: Payload, kernel: Any) -> None:
        """Prepare to encode; `kernel` is the module `codedgrad.ops._ops_cuda`."""
        layout = self._layout = payload.layout
        self._tail = payload.tail
        self._runs = Runs(payload)
        self._kernel = kernel
        self._kind = _CPU if layout.device.type == "cpu" else _CUDA
        self._buckets = len(layout.bucket_starts) - 1
        self._type = NAMES[layout.dtype]
        self._itemsize = layout.dtype.itemsize
        self._place = layout.gradients + layout.nonfinite_place
        # By place in the row: a table that a kernel reads on the device, and the stream
        # in which it was copied there. That stream alone reads it, so that neither its
        # copy nor the end of its memory overtakes a kernel.
        self._tables: dict[int, tuple[bytes, int, Tensor]] = {}
        self._flag: Tensor | None = None  # of the row that is being written
        self.flag: Tensor | None = None

    @classmethod
    def of(cls, payload: Payload) -> Self | None:
        """Returns the encoder; None where its kernel is not built."""
        try:
            kernel = kernels("_ops_cuda")
        except EnvironmentSetupError as error:
            log.info("rows are encoded by torch's operations: %s", error)
            return None
        if not hasattr(kernel, "encode"):
            log.warning(
                "rows are encoded by torch's operations: the CUDA kernels are of an "
                "older version. CODEDGRAD_CUDA=1 pip install -e . builds them"
            )
            return None
        return cls(payload, kernel)

    def begin(self, *, soon: bool = True) -> None:  # noqa: ARG002
        """Begin a new row; a device has no use for `soon`."""
        layout = self._layout
        self._flag = torch.zeros((), dtype=layout.dtype, device=layout.device)
        self.flag = None

    def bucket(
        self, bucket: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> bool:
        """Write one bucket of a row, see `codedgrad.row.encoder.Encoder`."""
        self._write(bucket, bucket + 1, out, weight, sums)
        if bucket == self._buckets - 1:
            self._add_flag(out, weight)
        return True

    def row(self, out: Tensor, weight: float, sums: Sequence[Tensor]) -> bool:
        """Write all buckets of a row, those with one rounding in one launch."""
        narrow = self._layout.narrow_buckets
        for first, until in ((0, narrow), (narrow, self._buckets)):
            if first < until:
                self._write(first, until, out, weight, sums)
        self._add_flag(out, weight)
        return True

    def nothing(self, bucket: int, out: Tensor, sums: Sequence[Tensor]) -> None:
        """Write one bucket of a micro-batch that weighs nothing, see `Encoder`."""
        for run in self._runs.of(bucket, bucket + 1):
            if run.weighed:
                leaf = [(0, run.elements, self._type)]
            else:
                leaf, _ = self._runs.leaf(run)  # the tail's, no copies
            table = kernels("_ops").table_of(leaf)
            self._launch(table, run, out, 0.0 if run.weighed else 1.0, sums)

    def _add_flag(self, out: Tensor, weight: float) -> None:
        assert self._flag is not None  # since `begin`
        out[self._place].add_(self._flag, alpha=weight)
        self.flag = self._flag

    def _write(
        self, first: int, until: int, out: Tensor, weight: float, sums: Sequence[Tensor]
    ) -> None:
        """Write the buckets from `first` to before `until`, with one rounding."""
        for run in self._runs.of(first, until):
            table: bytes | None = None
            copies: list[Tensor] = []
            if run.found is not None:
                table = kernels("_ops").table(
                    run.found,
                    run.parameters,
                    tail=self._tail.values.data_ptr(),
                    type=self._type,
                    device=self._kind,
                )
            if table is None:
                leaf, copies = self._runs.leaf(run)
                table = kernels("_ops").table_of(leaf)
            self._launch(table, run, out, weight if run.weighed else 1.0, sums)
            # The kernel may not have run yet: the allocator keeps freed memory in the
            # stream's order.
            del copies

    def _launch(
        self,
        table: bytes,
        run: Run,
        out: Tensor,
        weight: float,
        sums: Sequence[Tensor],
    ) -> None:
        """Start the kernel in the stream in which torch computes."""
        skip = run.place * self._itemsize
        wire = self._layout.wire_at(run.place)
        with devices.selected(self._layout.device) as stream:
            self._kernel.encode(
                pieces=table,
                table=self._on_device(table, run, stream),
                weight=weight,
                sums=[s.data_ptr() + skip for s in sums],
                type=self._type,
                out=out.data_ptr() + skip,
                wire="" if wire is None else NAMES[wire],
                flag=0 if self._flag is None else self._flag.data_ptr(),
                stream=stream,
            )

    def _on_device(self, table: bytes, run: Run, stream: int) -> int:
        """Returns the table's address on the device, for a kernel of this stream.

        It is 0 where the table is small. `stream` is the one in which torch computes.
        """
        if len(run.spans) <= self._kernel.INLINE_PIECES:
            return 0
        known = self._tables.get(run.place)
        if known is None or known[:2] != (table, stream):
            host = torch.frombuffer(bytearray(table), dtype=torch.uint8)
            held = torch.empty_like(host, device=self._layout.device)
            devices.put(held, host)
            known = self._tables[run.place] = table, stream, held
        return known[2].data_ptr()
