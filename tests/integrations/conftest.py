"""Tests with the real frameworks, at any number of workers.

The frameworks warn of much, and a test with an error of ours ends a job. So warnings
are no errors here, and what ends a job is tried by one worker (test_refusals.py).
"""

from typing import Any

import pytest
import workers
from workers import (  # noqa: F401
    pytest_runtest_logreport,
    pytest_sessionfinish,
    together,
)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: Any) -> None:
    config.addinivalue_line("filterwarnings", "ignore")
    workers.pytest_configure(config)
