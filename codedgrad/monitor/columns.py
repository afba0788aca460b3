"""The kinds of lines in the table of `codedgrad.monitor.report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.monitor.report import StepReport


@dataclass(frozen=True)
class Metric:
    """A metric for Prometheus that is derived from a column.

    Attributes:
        name: The name in the file is `codedgrad_<name>`, for a counter
            `codedgrad_<name>_total`.
        help: A sentence that explains the metric.
        kind: A "counter" adds up over the steps, a "gauge" has the last step's value.
        value: What a step adds to the counter; None stands for the column's value.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge"] = "counter"
    value: Callable[[StepReport], float] | None = None

    @property
    def full_name(self) -> str:
        """The name that stands in the file."""
        return f"codedgrad_{self.name}" + "_total" * (self.kind == "counter")


@dataclass(frozen=True)
class Column:
    """The places of one field of `StepReport`.

    Attributes:
        name: The name of the field.
        unit: "s" for seconds; empty for counts, shares and the like.
        kind: A "number" is one value per step. Values "by worker" are a dictionary; the
            log has them as `worker:value` pairs, in worker 0's file only. Values "by
            step" are pairs of a step, not always the report's, and a value.
        log: The format of the value in the log; None keeps it out of the log.
        log_name: The column's name in the log, if it is not the field's.
        in_old_logs: False for a column that logs of earlier versions lack; the reader
            then takes it as NaN. New columns need this.
        metrics: The metrics for Prometheus.
        tag: The scalar for TensorBoard. Values "by worker" give the number of absent
            workers, values "by step" their mean for each step.
        of_estimates: True for a figure that exists only in steps with estimates; the
            count of them also exists, as 0, in the steps after the first estimate.
        page: The title in the report's table of workers. Seconds are shown as their
            mean over the steps, other figures as their sum.
        saved: Whether `RunRecord.save` writes an array of it.
    """

    name: str
    unit: str = ""
    kind: Literal["number", "by worker", "by step"] = "number"
    log: str | None = None
    log_name: str | None = None
    in_old_logs: bool = True
    metrics: tuple[Metric, ...] = ()
    tag: str | None = None
    of_estimates: bool = False
    page: str | None = None
    saved: bool = False

    @property
    def heading(self) -> str:
        """The name of the column in the log."""
        return self.log_name or self.name
