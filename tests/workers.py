"""What a conftest takes for tests that hold at any number of workers.

    mpirun -n N python -m pytest

Every worker runs every test; a test that fails on one worker fails the run. Only
worker 0 prints the report. A test that hangs prints every worker's stacks and ends.
"""

from __future__ import annotations

import faulthandler
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

import codedgrad

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 120


@pytest.hookimpl(trylast=True)
def pytest_configure(config: Any) -> None:
    torch.set_num_threads(1)
    codedgrad.init(timeout_s=60)
    if codedgrad.rank() != 0:
        reporter = config.pluginmanager.getplugin("terminalreporter")
        reporter._tw._file = open("/dev/null", "w")  # noqa: SIM115, PTH123


@pytest.fixture(autouse=True)
def together() -> Iterator[None]:
    """All workers enter each test together, with the same random numbers."""
    torch.manual_seed(0)
    faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)
    codedgrad.barrier()
    yield
    faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: Any) -> None:
    if not report.failed:
        return
    rank = codedgrad.rank() if codedgrad.is_initialized() else "?"
    if rank != 0:
        sys.stderr.write(f"[worker {rank}] {report.longreprtext}\n")


def pytest_sessionfinish(exitstatus: int) -> None:
    if exitstatus != 0 and codedgrad.is_initialized():
        # The others may be waiting in an exchange for this worker.
        codedgrad.job.runtime.current().fail(
            f"tests failed on worker {codedgrad.rank()} (exit status {exitstatus})"
        )
