"""The exchange of all evaluations of a job: opened by the first one, used by all.

Each evaluation is one step of it. So whatever holds for the steps of a training holds
here: a worker that lags takes the sums of evaluations that are decoded, and after the
first evaluation there is no barrier.
"""

from __future__ import annotations

import logging
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from codedgrad.codes.code import Code
from codedgrad.codes.rows import own_rows
from codedgrad.codes.tree import SumTree
from codedgrad.errors import ConfigError
from codedgrad.exchange.engine import EngineExchange
from codedgrad.inference.parts import leaves_for
from codedgrad.inference.row import LINE
from codedgrad.job.faults import Injector
from codedgrad.job.settings import ExchangeSettings
from codedgrad.step import start
from codedgrad.step.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.inference.row import Row
    from codedgrad.job.runtime import Runtime
    from codedgrad.row.layout import Layout

log = logging.getLogger("codedgrad")

_PART = "evaluations"  # the name among the parts of a Runtime
_LINES = 64  # of a row at first: 896 numbers


class _RowLayout(NamedTuple):
    """What an exchange asks of a layout, for rows of sums."""

    bucket_starts: list[int]
    gradients: int = 0
    narrow_buckets: int = 0
    wire: str = "float32"  # as in memory
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")


class SumExchange(EngineExchange):
    """An exchange that knows whose parts of the present evaluation are missing."""

    noun = "evaluation"
    late: Callable[[], list[int]] | None = None

    def _computable_by_all(self) -> bool:
        return True

    def _blockers(self, step: int) -> list[int]:
        late = self.late() if self.late is not None else []
        late = [w for w in late if w not in self.lost()]
        return late or super()._blockers(step)


class Session:
    """The exchange, and what one evaluation learns for the next.

    Attributes:
        job: all workers.
        tree: in which the engine decodes.
        lines: of a row.
        number: of the next evaluation; the step of the exchange.
        exchange: between the workers.
        injector: makes this worker slow on purpose, or None.
    """

    def __init__(self, job: Runtime) -> None:
        """Open the exchange. Collective."""
        self.job = job
        self.tree = SumTree.of_levels((leaves_for(job.size),))
        self.lines = max(_LINES, job.size)
        self.number = 0
        faults = start.faults_of(None, job.size)
        self.injector = Injector(faults, job.rank) if faults else None
        self._patience = Patience(0.0)
        self._batch_s: deque[float] = deque(maxlen=32)
        self._usual_s = 0.0
        self.exchange = self._open()

    def _open(self) -> SumExchange:
        job, leaves = self.job, self.tree.parts
        work = [
            tuple(range(w * leaves // job.size, (w + 1) * leaves // job.size))
            for w in range(job.size)
        ]
        code = Code(
            name="evaluation",
            parameters=(),
            workers=job.size,
            shards=leaves,
            micro=1,
            tree=self.tree,
            work=tuple(work),
            required=tuple(map(len, work)),
            rows=own_rows(work),
        )
        layout = _RowLayout([0, self.lines * LINE])
        exchange = SumExchange(
            job,
            code,
            cast("Layout", layout),
            ExchangeSettings(),
            first_step=self.number,
            deputies=True,
        )
        # Nobody sends before all have opened theirs.
        job.gather(b"", "to begin an evaluation")
        return exchange

    def enlarge(self, lines: int) -> None:
        """Go on with rows of so many lines. Collective."""
        log.debug("rows of evaluations have %d lines from now on", lines)
        self.exchange.close("to evaluate with larger sums")
        self.lines = lines
        self.exchange = self._open()

    def post(self, node: int, row: Row) -> None:
        """Send the row of a node of the present evaluation."""
        data = self.exchange.row_buffer()
        data.host.copy_(torch.from_numpy(row))
        self.exchange.post(self.number, node, data)

    def take(self) -> Row:
        """Returns the decoded row, and ends the evaluation."""
        total, _ = self.exchange.take(self.number)
        self.number += 1
        return np.array(total.numpy())

    # ---- what is learned ----

    def patience(self, setting: float) -> Patience:
        """Returns how long to wait before helping; `setting` is what the user gave.

        Raises:
            ConfigError: it is out of range.
        """
        if self._patience.setting != setting:
            self._patience = Patience(setting)
        return self._patience

    @property
    def batch_s(self) -> float:
        """The median seconds of a batch; 0: not known yet."""
        if self._batch_s:
            self._usual_s = median(self._batch_s)
        return self._usual_s

    def forget_times(self) -> None:
        """Begin anew to measure, with what is known until there is something new."""
        self._usual_s = self.batch_s
        self._batch_s.clear()

    def note_part(self, seconds: float, batches: int) -> None:
        """Hear how long a part took."""
        self._batch_s.append(seconds / batches)

    def stop(self, timeout_s: float) -> bool:
        """End with the job; see `codedgrad.job.runtime.Part`."""
        del timeout_s
        return True


def session_of(job: Runtime) -> Session:
    """Returns the job's session. Collective at the first call.

    Raises:
        ConfigError: a pass is computed, or the plan of faults is none.
    """
    if job.in_pass:
        raise ConfigError(
            "evaluate was called in a loss function, which some workers call more "
            "often than others; evaluate between two steps"
        )
    parts: dict[str, Any] = job.parts
    if _PART not in parts:
        parts[_PART] = Session(job)
    return cast("Session", parts[_PART])
