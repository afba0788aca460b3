"""The host does not run ahead of the device without a bound."""

from __future__ import annotations

import time

from late_device import LateDevice

from codedgrad.row.devices import Pace


def test_the_host_runs_ahead_by_so_many_boundaries() -> None:
    device = LateDevice()
    stream = device.stream()
    device.current = lambda: stream  # type: ignore[method-assign]
    pace, slow = Pace(device, ahead=3), 0.01
    begin = time.monotonic()
    for visit in range(10):
        stream.put(lambda: time.sleep(slow))
        pace.visit()
        ended = (time.monotonic() - begin) / slow  # kernels that can have ended
        assert visit - 3 < ended
    assert len(pace._under_way) <= 3
