"""Models on GPUs; several workers may share one. Runs only where there is a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from training import DELAYS, coded, everywhere

import codedgrad
from codedgrad import codes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch.cuda.is_available() is False"
    ),
]
STEPS = 20


@pytest.fixture
def device() -> Iterator[str]:
    """This worker's GPU, whose arithmetic has the same bits in every pass."""
    index = codedgrad.local_rank() % torch.cuda.device_count()
    torch.cuda.set_device(index)
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield f"cuda:{index}"
    torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize("decode", ["0", "1", ""])
@pytest.mark.parametrize("bucket_mb", [0.0005, None])
@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_delays_change_no_bit(
    device: str,
    wire: str,
    bucket_mb: float | None,
    decode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = codedgrad.size()
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", decode)
    code = codes.spread(n, micro=4, copies=min(2, max(1, n - 1)))
    settings = {"wire": wire, "bucket_mb": bucket_mb, "device": device}
    seen = []
    got = coded(
        code,
        STEPS,
        faults=DELAYS,
        each_step=lambda g: seen.append(g._exchange.counters()["slices_on_device"]),
        **settings,
    )
    if decode == "1" and wire == "float32":
        assert seen[-1] > 0
    assert len(set(everywhere(got[0]))) == 1
    monkeypatch.setenv("CODEDGRAD_GPU_DECODE", "0")
    assert got == coded(code, STEPS, overlap=False, **settings)


def test_as_on_the_cpu(device: str) -> None:
    code = codes.uncoded(codedgrad.size(), micro=2)
    _, losses = coded(code, STEPS, device=device)
    _, want = coded(code, STEPS)
    # Dropout draws other numbers on a device: the same training, not the same losses.
    assert losses[-1] == pytest.approx(want[-1], abs=0.5)
