"""Where rows lie: memory, streams and events of the device that holds the model."""

from __future__ import annotations

from codedgrad.row.devices.staging import (
    DeviceRuntime,
    Pace,
    Staging,
    check,
    rows_memory,
    runtime_of,
)

__all__ = ["DeviceRuntime", "Pace", "Staging", "check", "rows_memory", "runtime_of"]
