"""Other libraries find the job by what `init(export_env=True)` exports."""

from __future__ import annotations

import os

import pytest
import torch
from torch import distributed
from training import everywhere

import codedgrad
from codedgrad.job import environment, exported, runtime

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def test_nothing_is_exported_unless_asked() -> None:
    assert not [name for name in NAMES if name in os.environ]


def test_torch_distributed_starts_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "17")  # as somebody has left it
    exported.export(runtime.current())
    try:
        assert os.environ["RANK"] == os.environ["LOCAL_RANK"] == str(codedgrad.rank())
        assert len(set(everywhere(os.environ["MASTER_PORT"]))) == 1
        distributed.init_process_group("gloo")
        total = torch.tensor([1.0 + codedgrad.rank()])
        distributed.all_reduce(total)
        distributed.destroy_process_group()
        n = codedgrad.size()
        assert total.item() == n * (n + 1) / 2
    finally:
        environment.withdraw()
    assert os.environ["LOCAL_RANK"] == "17"
    assert "RANK" not in os.environ
