"""Settings of torch are compared; unlike hardware is worth one warning."""

from __future__ import annotations

import logging

import pytest
import torch
from job.fakes import fake_runtime

from codedgrad.job import likeness
from codedgrad.job.runtime import Runtime

CPU = torch.device("cpu")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("unlike", [False, True])
def test_unlike_hardware(
    rank: int,
    unlike: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gather(_job: Runtime, data: bytes, _occasion: str) -> list[bytes]:
        return [data, b"96 threads, CPU capability AVX9" if unlike else data, data]

    monkeypatch.setattr(Runtime, "gather", gather)
    likeness.compare_hardware(fake_runtime(3, rank=rank), CPU)
    assert len(caplog.records) == (unlike and rank == 0)
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert "CPU capability AVX9: worker(s) [1]" in record.getMessage()
        assert "on who was late" in record.getMessage()


def test_settings_that_change_results() -> None:
    def with_(change: object) -> list[tuple[str, str]]:
        precision, kind = (
            torch.get_float32_matmul_precision(),
            torch.get_default_dtype(),
        )
        deterministic = torch.are_deterministic_algorithms_enabled()
        try:
            assert callable(change)
            change()
            return likeness.settings()
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.set_default_dtype(kind)
            torch.use_deterministic_algorithms(deterministic)

    usual = likeness.settings()
    assert dict(usual)["torch"] == torch.__version__
    for change in (
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.use_deterministic_algorithms(True),
    ):
        assert with_(change) != usual
    assert likeness.settings() == usual
