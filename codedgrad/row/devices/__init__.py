"""Where rows lie: memory, streams and events of the device that holds the model."""

from __future__ import annotations

from codedgrad.row.devices.base import (
    DeviceRuntime,
    check,
    on_host,
    put,
    rows_memory,
    runtime_of,
    selected,
)
from codedgrad.row.devices.pace import Pace
from codedgrad.row.devices.staging import Staging

__all__ = [
    "DeviceRuntime",
    "Pace",
    "Staging",
    "check",
    "on_host",
    "put",
    "rows_memory",
    "runtime_of",
    "selected",
]
