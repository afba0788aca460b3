"""Tests that hold at any number of workers: `mpirun -n N python -m pytest`."""

from workers import (  # noqa: F401
    pytest_configure,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    together,
)
