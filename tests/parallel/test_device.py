"""Training with a device whose copies come late: the same bits as without one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from late_device import LateDevice
from training import DELAYS, coded, everywhere

import codedgrad
from codedgrad import WorkerError, codes, devices, overlap
from codedgrad.encoding import HostEncoder, TorchEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 20


@pytest.fixture
def late(request: pytest.FixtureRequest) -> Iterator[LateDevice]:
    """Every model is on this device from now on."""
    device = LateDevice(seed=codedgrad.rank(), **getattr(request, "param", {}))
    _DEVICES.append(device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "runtime_of", lambda _: device)
        patch.setattr(overlap, "encoder_of", TorchEncoder)  # as on any device
        yield device


# An engine is bound to one device for good, so its functions stay.
_DEVICES: list[LateDevice] = []


@pytest.fixture(autouse=True)
def fresh_engine() -> Iterator[None]:
    """An engine of this test's own, on which no device is bound yet."""
    codedgrad.shutdown()
    codedgrad.init()
    yield
    codedgrad.shutdown()
    codedgrad.init()


@pytest.mark.parametrize("bucket_mb", [0.0005, None])
@pytest.mark.parametrize("which", ["spread", "uncoded", "fractional", "staircase"])
def test_the_same_bits(late: LateDevice, which: str, bucket_mb: float | None) -> None:
    n = codedgrad.size()
    copies = next((d for d in range(2, n + 1) if n % d == 0), 1)
    code = {
        "spread": codes.spread(n, micro=4, copies=min(2, max(1, n - 1))),
        "uncoded": codes.uncoded(n, micro=3),
        "fractional": codes.fractional(n, copies=copies, micro=2),
        "staircase": codes.scheduled(n, copies=min(2, n), order="staircase"),
    }[which]
    got = coded(code, STEPS, faults=DELAYS, bucket_mb=bucket_mb)
    assert late.copies > STEPS  # sums back, and rows out unless they were late
    assert len(set(everywhere(got[0]))) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "runtime_of", lambda _: None)
        patch.setattr(overlap, "encoder_of", HostEncoder)
        assert got == coded(code, STEPS)
    assert set(late.set_devices) == {3}


@pytest.mark.parametrize("late", [{"pins": False}, {"late_s": 0.02}], indirect=True)
def test_little_pinned_memory_and_slow_copies(
    late: LateDevice, caplog: pytest.LogCaptureFixture
) -> None:
    code = codes.spread(codedgrad.size(), micro=2, copies=1)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        got = coded(code, 8, wire="bfloat16")
    assert ("could not pin" in caplog.text) == (not late.pins)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "runtime_of", lambda _: None)
        patch.setattr(overlap, "encoder_of", HostEncoder)
        assert got == coded(code, 8, wire="bfloat16")


def test_a_broken_device_ends_the_job_everywhere(late: LateDevice) -> None:
    def breaks(gradient: codedgrad.CodedGradient) -> None:
        late.broken = gradient.step >= 3 and codedgrad.rank() == 0

    code = codes.uncoded(codedgrad.size())
    with pytest.raises(WorkerError, match=r"worker 0: the device answered 700"):
        coded(code, STEPS, each_step=breaks)
