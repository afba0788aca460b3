"""Fixtures: every model is on a device whose copies and sums come late.

A test module names this one in `pytest_plugins`, and uses `fresh_engine`.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from late_device import LateDevice
from ops import emulation

import codedgrad
from codedgrad import WorkerError
from codedgrad.job import lifecycle
from codedgrad.row import devices
from codedgrad.row import writer as overlap
from codedgrad.row.encoder import TorchEncoder, encoder_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def late(request: pytest.FixtureRequest) -> Iterator[LateDevice]:
    """Every model is on this device from now on."""
    device = LateDevice(seed=codedgrad.rank(), **getattr(request, "param", {}))
    _DEVICES.append(device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "runtime_of", lambda _: device)
        patch.setattr(overlap, "encoder_of", TorchEncoder)  # as on any device
        yield device


@pytest.fixture
def far(late: LateDevice) -> Iterator[LateDevice]:
    """The host does not read the device's memory, and the emulated kernel encodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "on_host", lambda _: False)
        patch.setattr(overlap, "encoder_of", encoder_of)
        if shutil.which("c++"):
            patch.setitem(sys.modules, "codedgrad.ops._ops_cuda", emulation.module())
        yield late


# An engine is bound to one device for good, so its functions stay.
_DEVICES: list[LateDevice] = []


@pytest.fixture
def fresh_engine() -> Iterator[None]:
    """An engine of this test's own, on which no device is bound yet."""
    codedgrad.shutdown()
    codedgrad.init()
    yield
    with contextlib.suppress(WorkerError):  # news of a test that ended in an error
        codedgrad.shutdown()
    lifecycle._deserted = None  # all workers are here, although an engine has ended
    codedgrad.init()
