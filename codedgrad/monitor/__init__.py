"""Reports of a run: which row arrived when, what that cost, what codes saved.

`report` has the table of all figures. `record` keeps them in memory, `recorder` writes
them to the run's log, `runlog` reads it again. `plot_arrivals` needs the extra `plots`
of the package, `TensorBoardMonitor` the extra `tensorboard`, and the module
`prometheus` the extra of its name; the libraries are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedgrad.monitor.record import RunRecord
from codedgrad.monitor.report import StepReport

if TYPE_CHECKING:
    from codedgrad.monitor.plots import plot_arrivals
    from codedgrad.monitor.tensorboard import TensorBoardMonitor

__all__ = ["RunRecord", "StepReport", "TensorBoardMonitor", "plot_arrivals"]


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is asked for."""
    if name == "plot_arrivals":
        from codedgrad.monitor.plots import plot_arrivals

        return plot_arrivals
    if name == "TensorBoardMonitor":
        from codedgrad.monitor.tensorboard import TensorBoardMonitor

        return TensorBoardMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
