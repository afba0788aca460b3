"""The host does not run too far ahead of the device."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codedgrad.row.devices.base import DeviceRuntime


class Pace:
    """Bounds the number of module boundaries that the host is ahead of the device.

    A host that has queued a whole pass on the device can no longer abandon it. A pass
    has few boundaries (`codedgrad.step.boundaries`), so few are ahead.
    """

    def __init__(self, runtime: DeviceRuntime, ahead: int = 2) -> None:
        """Lets the host be `ahead` boundaries in front of the device, and no more."""
        self._runtime = runtime
        self._free = [runtime.event() for _ in range(ahead)]
        self._under_way: deque[Any] = deque()

    def visit(self) -> None:
        """Waits at a boundary until the device has reached the `ahead`th before."""
        if not self._free:
            event = self._under_way.popleft()
            self._runtime.synchronize(event)
            self._free.append(event)
        event = self._free.pop()
        self._runtime.record(event, self._runtime.current())
        self._under_way.append(event)
