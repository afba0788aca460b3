"""A checkpoint is the old one or the new one, never a part of either."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import forks
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


# Behind a limit on the size of files, torch.save fails as on a full disk.
FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
codedgrad.save(path, {'big': torch.zeros(1 << 20)})
"""
# It kills itself inside of torch.save.
HALF_WAY = """
import os, signal
class Kill:
    def __reduce__(self): os.kill(os.getpid(), signal.SIGKILL)
codedgrad.save(path, {'big': torch.zeros(1 << 20), 'kill': Kill()})
"""
# Writers are killed at several moments; without the second file, torch.load would fail.
WRITERS = """
import os, signal, time
values = torch.arange(2_000_000)
for delay_s in (0.003, 0.01, 0.05):
    begun, begin = os.pipe()
    writer = os.fork()
    if not writer:
        state = {'step': 1, 'values': values}
        while True:
            codedgrad.save(path, state)
            os.write(begin, b'x')
            state['step'] += 1
    os.read(begun, 1)
    time.sleep(delay_s)
    os.kill(writer, signal.SIGKILL)
    assert os.waitpid(writer, 0)[1] == signal.SIGKILL
    assert torch.equal(torch.load(path, weights_only=True)['values'], values)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The path of the checkpoint of each script, and how the script has ended."""
    scripts = {}
    for script in (FULL_DISK, HALF_WAY, WRITERS):
        path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
        codedgrad.save(path, {"step": 1})
        scripts[script] = path, f"import torch, codedgrad\npath = {str(path)!r}{script}"
    found = forks.run_all([text for _, text in scripts.values()])
    return {s: (p, e) for (s, (p, _)), e in zip(scripts.items(), found, strict=True)}


def test_a_full_disk_is_named(ended: dict[str, Any]) -> None:
    path, done = ended[FULL_DISK]
    assert done.stderr.splitlines()[-1].startswith("OSError: [Errno 27] the checkpoint")
    assert "(File too large); the file before it, if there was one, is" in done.stderr
    assert step_in(path) == 1
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_a_killed_writer_leaves_a_whole_file(ended: dict[str, Any]) -> None:
    path, done = ended[WRITERS]
    assert done.returncode == 0, done.stderr
    codedgrad.save(path, {"step": 0})
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_a_writer_that_is_killed_half_way(ended: dict[str, Any]) -> None:
    """The file before it is there."""
    path, done = ended[HALF_WAY]
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.glob(".*.partial"))) == 1
    assert step_in(path) == 1
