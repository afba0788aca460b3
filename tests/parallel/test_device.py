"""Training with a device whose copies come late: the same bits as without one."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import pytest
from late_device import LateDevice
from training import DELAYS, coded, everywhere

import codedgrad
from codedgrad import EnvironmentSetupError, WorkerError, codes
from codedgrad.row import devices
from codedgrad.row import writer as overlap
from codedgrad.row.encoder import HostEncoder

if TYPE_CHECKING:
    pass

pytest_plugins = ["on_late_device"]
pytestmark = pytest.mark.usefixtures("fresh_engine")
STEPS = 20
# Where the engine keeps rows, and who sums them.
WAYS: dict[str, tuple[dict[str, bool], str]] = {
    "pinned": ({}, "0"),
    "sums": ({}, "1"),
    "direct": ({"takes": True}, ""),
}


class Counters:
    """Of the exchange, after the last step."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def read(self, gradient: codedgrad.CodedGradient) -> None:
        self.last = gradient._exchange.counters()


def code_named(which: str) -> codes.Code:
    n = codedgrad.size()
    copies = next((d for d in range(2, n + 1) if n % d == 0), 1)
    return {
        "spread": codes.spread(n, micro=4, copies=min(2, max(1, n - 1))),
        "uncoded": codes.uncoded(n, micro=3),
        "fractional": codes.fractional(n, copies=copies, micro=2),
        "staircase": codes.scheduled(n, copies=min(2, n), order="staircase"),
    }[which]


@functools.cache  # every way is compared with it
def without_a_device(which: str) -> tuple[str, list[float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "runtime_of", lambda _: None)
        patch.setattr(overlap, "encoder_of", HostEncoder)
        return coded(code_named(which), STEPS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bucket_mb", [0.0005, None])
@pytest.mark.parametrize("which", ["spread", "uncoded", "fractional", "staircase"])
def test_the_same_bits(
    late: LateDevice,
    which: str,
    bucket_mb: float | None,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late.takes = WAYS[way][0].get("takes", False)
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", WAYS[way][1])
    code = code_named(which)
    counters = Counters()
    how: dict[str, Any] = {"faults": DELAYS, "bucket_mb": bucket_mb}
    got = coded(code, STEPS, each_step=counters.read, **how)
    assert late.copies > STEPS  # sums back, and rows out unless they were late
    on_device = counters.last["slices_on_device"]
    assert on_device == (0 if way == "pinned" else counters.last["slices_decoded"])
    assert (late.allocations > 0) == (way == "direct")
    assert len(set(everywhere(got[0]))) == 1
    assert got == without_a_device(which)
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


@pytest.mark.parametrize("settings", [{"wire": "bfloat16"}, {"approximate": True}])
def test_what_a_device_cannot_decode(late: LateDevice, settings: Any) -> None:
    late.takes = True
    n = codedgrad.size()
    if "approximate" in settings:
        settings = {"policy": codedgrad.approximate(patience=5.0)}
    code = codes.spread(n, micro=2, copies=1)
    got = coded(code, 8, **settings)
    assert len(set(everywhere(got[0]))) == 1
    assert late.allocations == 0 or n == 1  # where nothing is narrow
    if "wire" in settings:
        assert late.sums == 0


def test_a_linear_code(late: LateDevice) -> None:
    late.takes = True
    n = codedgrad.size()
    coded(codes.cyclic(n, stragglers=min(1, n - 1)), 4)
    assert late.sums == 0


@pytest.mark.parametrize("late", [{"pins": False}], indirect=True)
def test_sums_where_nothing_can_be_pinned(
    late: LateDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    code = codes.uncoded(codedgrad.size(), micro=2)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        got = coded(code, 4)
    assert late.sums == 0
    assert "decodes on the CPU: no memory could be pinned" in caplog.text
    assert len(set(everywhere(got[0]))) == 1
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", "1")
    with pytest.raises((EnvironmentSetupError, WorkerError), match="could be pinned"):
        coded(code, 4)


def test_kernels_that_never_start(
    late: LateDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    late.sums_broken = True
    code = codes.uncoded(codedgrad.size(), micro=2)
    with caplog.at_level(logging.WARNING, "codedgrad"):
        got = coded(code, 4)
    assert "decodes on the CPU: the device answered 700" in caplog.text
    assert len(set(everywhere(got[0]))) == 1
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", "1")
    with pytest.raises((EnvironmentSetupError, WorkerError), match="answered 700"):
        coded(code, 4)


def test_the_processor_where_it_is_faster(late: LateDevice) -> None:
    late.late_s = 0.01
    counters = Counters()
    coded(codes.uncoded(codedgrad.size()), 4, each_step=counters.read)
    assert late.sums > 0  # trials
    assert counters.last["slices_on_device"] == 0


@pytest.mark.parametrize("decode", ["", "1"])
def test_wrong_sums_are_found_before_the_first_step(
    late: LateDevice, decode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", decode)
    late.miscounts = True
    with pytest.raises(
        (EnvironmentSetupError, WorkerError), match="are not those of the processor"
    ):
        coded(codes.uncoded(codedgrad.size()), 4)


@pytest.mark.parametrize("which", ["sums_broken", "answers_broken"])
@pytest.mark.parametrize("way", ["sums", "direct"])
def test_kernels_that_fail_end_the_job_everywhere(
    late: LateDevice, way: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late.takes = WAYS[way][0].get("takes", False)
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", WAYS[way][1])

    def breaks(gradient: codedgrad.CodedGradient) -> None:
        setattr(late, which, gradient.step >= 3 and codedgrad.rank() == 0)

    code = codes.uncoded(codedgrad.size())
    with pytest.raises(WorkerError, match=r"worker 0: the device answered 700 when"):
        coded(code, STEPS, each_step=breaks)


@pytest.mark.parametrize("way", ["sums", "direct"])
def test_a_job_that_fails_with_sums_under_way(
    late: LateDevice, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late.takes = WAYS[way][0].get("takes", False)
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", WAYS[way][1])

    def stumbles(gradient: codedgrad.CodedGradient) -> None:
        late.late_s = 0.1
        if gradient.step == 3 and codedgrad.rank() == codedgrad.size() - 1:
            codedgrad.job.runtime.current().engine.fail("stumbled")

    code = codes.uncoded(codedgrad.size())
    with pytest.raises(WorkerError, match="stumbled"):
        coded(code, STEPS, each_step=stumbles)


@pytest.mark.parametrize("late", [{"takes": True, "memory": 1 << 16}], indirect=True)
def test_too_little_memory_on_the_device(late: LateDevice) -> None:
    code = codes.uncoded(codedgrad.size())
    with pytest.raises(
        (WorkerError, RuntimeError), match=r"answered 2 .*CODEDGRAD_GPU_DIRECT=0"
    ):
        coded(code, STEPS, wide=64)


def test_a_broken_device_ends_the_job_everywhere(late: LateDevice) -> None:
    def breaks(gradient: codedgrad.CodedGradient) -> None:
        late.broken = gradient.step >= 3 and codedgrad.rank() == 0

    code = codes.uncoded(codedgrad.size())
    with pytest.raises(WorkerError, match=r"worker 0: the device answered 700"):
        coded(code, STEPS, each_step=breaks)
