"""Which devices there are, and whose memory holds rows."""

from __future__ import annotations

import pytest
import torch
from late_device import LateDevice

from codedgrad import ConfigError
from codedgrad.job import doctor, environment
from codedgrad.row.devices import check, rows_memory, runtime_of

CPU = torch.device("cpu")


def test_where_a_model_may_be() -> None:
    assert runtime_of(CPU) is None
    with pytest.raises(ConfigError, match=r"on meta.*model.cpu\(\) or model.cuda\(\)"):
        check(torch.device("meta"))


@pytest.mark.parametrize(
    ("sums", "takes", "decode", "direct", "want"),
    [
        (True, True, "", "", "device"),
        (True, True, "1", "1", "device"),
        (True, True, "0", "", "pinned"),  # nobody could sum there
        (True, True, "", "0", "pinned"),
        (True, False, "1", "", "pinned"),
        (False, True, "", "", "pinned"),
    ],
)
def test_whose_memory_holds_rows(
    sums: bool,
    takes: bool,
    decode: str,
    direct: str,
    want: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CODEDGRAD_GPU_DIRECT", direct)
    device = LateDevice(takes=takes)
    calls = device.engine_calls()
    assert rows_memory(device, calls, sums=sums, wanted=decode) == want
    none = LateDevice(takes=takes, sums=False).engine_calls()
    assert rows_memory(device, none, sums=sums, wanted=decode) == "pinned"


def test_a_switch_is_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", "yes")
    with pytest.raises(ConfigError, match="DECODE must be 0, 1 or unset, got 'yes'"):
        environment.gpu_decode()


@pytest.mark.parametrize("built", [False, True])
def test_the_doctor_tells_of_kernels(
    built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    monkeypatch.setattr(doctor, "find_spec", lambda _: built or None)
    found = doctor._cuda({"reads_cuda": True})
    assert "GPU; MPI takes its memory" in found.value
    assert found.ok == built
    assert ("CODEDGRAD_CUDA=1 pip install" in found.remedy) == (not built)
