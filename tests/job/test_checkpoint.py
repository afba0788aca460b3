"""A checkpoint is the old one or the new one, never a part of either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from job.fakes import fake_runtime

import codedgrad
from codedgrad.job import runtime


def step_in(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


def test_it_is_read_by_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = torch.nn.Linear(3, 2)
    assert codedgrad.save(path, {"model": model.state_dict(), "step": 1})
    assert codedgrad.save(str(path), {"model": model.state_dict(), "step": 2})
    loaded = torch.load(path, weights_only=True)
    assert loaded["step"] == 2
    assert torch.equal(loaded["model"]["weight"], model.weight)
    assert os.listdir(tmp_path) == ["model.pt"]  # noqa: PTH208


@pytest.mark.parametrize("error", [OSError, KeyError])
def test_an_error_leaves_the_file_before(
    error: type[Exception], tmp_path: Path
) -> None:
    class Faulty:
        def __reduce__(self) -> Any:
            raise error(28, "No space left on device")

    path = tmp_path / "model.pt"
    codedgrad.save(path, {"step": 1})
    with pytest.raises(error, match="No space left on device") as caught:
        codedgrad.save(path, {"step": 2, "faulty": Faulty()})
    if error is OSError:
        assert "the file before it, if there was one, is as it was" in str(caught.value)
        assert str(path) in str(caught.value)
    assert step_in(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """Behind a limit on the size of files, torch.save fails as on a full disk."""
    path = tmp_path / "model.pt"
    codedgrad.save(path, {"step": 1})
    script = (
        "import resource, sys, torch, codedgrad\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "codedgrad.save(sys.argv[1], {'big': torch.zeros(1 << 20)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1].startswith("OSError: [Errno 27] the checkpoint")
    assert "(File too large); the file before it, if there was one, is" in done.stderr
    assert step_in(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(codedgrad.ConfigError, match="is a folder, wanted the name"):
        codedgrad.save(tmp_path, {})
    with pytest.raises(codedgrad.ConfigError, match="does not exist; create it first"):
        codedgrad.save(tmp_path / "none" / "model.pt", {})


@pytest.mark.parametrize(
    ("rank", "on_rank", "writes"),
    [(0, 0, True), (1, 0, False), (1, 1, True), (1, None, True), (0, 1, False)],
)
def test_one_worker_writes_unless_told(
    rank: int,
    on_rank: int | None,
    writes: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_current", fake_runtime(2, rank=rank))
    path = tmp_path / "model.pt"
    assert codedgrad.save(path, {"step": 1}, on_rank=on_rank) is writes
    assert path.exists() is writes


@pytest.mark.parametrize(
    ("lost", "on_rank", "writer"), [([0], 0, 1), ([2], 2, 0), ([0, 1], 1, 2)]
)
def test_the_first_that_is_left_writes_for_one_that_is_lost(
    lost: list[int],
    on_rank: int,
    writer: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rank in sorted({0, 1, 2} - set(lost)):
        job = fake_runtime(3, rank=rank, lost=lambda: dict.fromkeys(lost, 1.0))
        monkeypatch.setattr(runtime, "_current", job)
        path = tmp_path / f"{rank}.pt"
        assert codedgrad.save(path, {}, on_rank=on_rank) is (rank == writer)
        assert codedgrad.leads() is (rank == min({0, 1, 2} - set(lost)))
    assert codedgrad.lost_workers() == lost


def test_a_worker_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_current", fake_runtime(2))
    with pytest.raises(codedgrad.ConfigError, match="on_rank must be 0 to 1, or None"):
        codedgrad.save(tmp_path / "model.pt", {}, on_rank=2)


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "step-1[a].pt", tmp_path / "latest.pt"
    codedgrad.save(real, {"step": 1})
    mask = os.umask(0o022)
    os.umask(mask)
    assert real.stat().st_mode & 0o777 == 0o666 & ~mask
    real.chmod(0o640)
    link.symlink_to(real.name)
    codedgrad.save(link, {"step": 2})
    assert link.is_symlink()
    assert step_in(real) == 2
    assert real.stat().st_mode & 0o777 == 0o640


WRITER = """
import sys, torch, codedgrad
state = {"step": 1, "values": torch.arange(2_000_000)}
codedgrad.save(sys.argv[1], state)
print("first", flush=True)
while True:
    state["step"] += 1
    codedgrad.save(sys.argv[1], state)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    """Killed at several moments; without the second file, torch.load would fail."""
    path = tmp_path / "model.pt"
    for delay_s in (0.003, 0.01, 0.05):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        loaded = torch.load(path, weights_only=True)
        assert torch.equal(loaded["values"], torch.arange(2_000_000))
    codedgrad.save(path, {"step": 0})
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_writer_that_is_killed_half_way(tmp_path: Path) -> None:
    """It kills itself inside of torch.save: the file before it is there."""
    path = tmp_path / "model.pt"
    codedgrad.save(path, {"step": 1})
    script = (
        "import os, signal, sys, torch, codedgrad\n"
        "class Kill:\n"
        "    def __reduce__(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        "codedgrad.save(sys.argv[1], {'big': torch.zeros(1 << 20), 'kill': Kill()})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*.partial"))) == 1
    assert step_in(path) == 1
