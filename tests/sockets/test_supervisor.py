"""The supervisor of `codedgrad run --transport socket`: signals, statuses, orphans.

Its workers here train nothing, and start in no time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from codedgrad.errors import ConfigError
from codedgrad.job import environment
from codedgrad.job.sockets import supervisor

ROOT = Path(__file__).parent.parent.parent
# A worker says who it is by a file, then does what FOLDER/do.RANK says.
WORKER = """
import os, pathlib, signal, subprocess, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["CODEDGRAD_RANK"]
signal.signal(signal.SIGUSR1, lambda *_: (folder / f"heard.{rank}").write_text("x"))
assert len(os.environ["CODEDGRAD_TOKEN"]) == 32 and "OMPI_X" not in os.environ
child = subprocess.Popen(["sleep", "60"])
part = folder / f"part.{rank}"
part.write_text(f"{os.getpid()} {child.pid}")
part.rename(folder / f"here.{rank}")
order = folder / f"do.{rank}"
mark = pathlib.Path(os.environ["CODEDGRAD_FOLDER"]) / f"outlived.{rank}"
while not order.exists():
    time.sleep(0.01)
exec(order.read_text())
"""
SUPERVISE = (
    "import bare, sys; from codedgrad.job.sockets import supervisor as s;"
    "s._OWN_END_S = s._SIGTERM_S = 0.3;"
    "sys.exit(s.run(sys.argv[2:], 3, {}, int(sys.argv[1])))"
)


class Job:
    """A supervisor in a process of its own, and three workers."""

    def __init__(self, folder: Path, before: Any = None, restarts: int = 0) -> None:
        """Start it; `before` is called in its process, before the program begins."""
        self.folder = folder
        command = [sys.executable, "-c", SUPERVISE, str(restarts)]
        self.process = subprocess.Popen(
            [*command, sys.executable, "-c", WORKER, str(folder)],
            cwd=ROOT,
            env=environment.without_launcher()
            | {"OMPI_X": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        self.wait_for(lambda: all(f.exists() for f in self.files("here")))
        lines = [f.read_text().split() for f in self.files("here")]
        self.pids = [int(pid) for line in lines for pid in line]

    def files(self, kind: str) -> list[Path]:
        return [self.folder / f"{kind}.{rank}" for rank in range(3)]

    def do(self, rank: int, text: str) -> None:
        self.files("part")[rank].write_text(text)
        self.files("part")[rank].rename(self.files("do")[rank])

    def wait_for(self, there: Any) -> None:
        limit = time.monotonic() + 30.0
        while not there():
            assert time.monotonic() < limit
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Returns status and messages; nothing of the job is left."""
        said = self.process.communicate(timeout=30.0)[1]
        self.wait_for(lambda: not any(map(lives, self.pids)))
        return self.process.returncode, said


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_all_end_well(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for rank in (2, 0, 1):
        job.do(rank, "sys.exit(0)")
    assert job.end() == (0, "")


def test_a_signal_is_passed_on_and_the_failed_one_is_named(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.process.send_signal(signal.SIGUSR1)
    job.wait_for(lambda: all(f.exists() for f in job.files("heard")))
    job.do(1, "os.kill(os.getpid(), signal.SIGSEGV)")
    job.do(2, "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    status, said = job.end()
    assert status == 128 + signal.SIGSEGV
    assert said.strip() == (
        "codedgrad run: worker 1 ended by signal 11 (SIGSEGV); ending worker(s) [0, 2]"
    )


def ignored_by(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(x.split()[1], 16) for x in lines if x.startswith("SigIgn"))
    return {n for n in range(1, 65) if mask >> (n - 1) & 1}


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    """And workers that read the terminal from the background are not stopped."""

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    job = Job(tmp_path, nohup)
    for pid in (job.process.pid, *job.pids[::2]):
        assert signal.SIGHUP in ignored_by(pid)
    for pid in job.pids[::2]:
        assert {signal.SIGTTIN, signal.SIGTTOU} <= ignored_by(pid)
    job.process.send_signal(signal.SIGHUP)
    for rank in range(3):
        job.do(rank, "sys.exit(0)")
    assert job.end() == (0, "")


def test_a_status_comes_back(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.do(2, "sys.exit(3)")
    status, said = job.end()
    assert status == 3
    assert "worker 2 ended with status 3; ending worker(s) [0, 1]" in said


def mark_all(job: Job) -> None:
    """Let all workers say that the others outlive them; they go on afterwards."""
    for rank in range(3):
        again = "folder / f'then.{rank}'"
        job.do(
            rank,
            f"mark.touch(); order = {again}; (folder / f'marked.{{rank}}').touch()\n"
            "while not order.exists(): time.sleep(0.01)\nexec(order.read_text())",
        )
    job.wait_for(lambda: all(f.exists() for f in job.files("marked")))


def then(job: Job, rank: int, text: str) -> None:
    job.files("later")[rank].write_text(text)
    job.files("later")[rank].rename(job.files("then")[rank])


def gone(job: Job, rank: int) -> None:
    job.wait_for(lambda: not lives(job.pids[2 * rank]))


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "by signal 9 (SIGKILL)"),
        ("os._exit(0)", "with status 0"),
    ],
)
def test_a_marked_worker_is_outlived(tmp_path: Path, death: str, words: str) -> None:
    job = Job(tmp_path)
    mark_all(job)
    then(job, 0, death)
    gone(job, 0)
    for rank in (2, 1):
        then(job, rank, "mark.rename(mark.with_name(f'left.{rank}')); sys.exit(0)")
    said = f"codedgrad run: worker 0 ended {words}; worker(s) [1, 2] go on"
    assert job.end() == (supervisor.LOST, f"{said}\n")


@pytest.mark.parametrize(
    ("second", "status", "words"),
    [
        ("os._exit(3)", supervisor.LOST, "with status 3, before it had come back"),
        ("wait()", supervisor.LOST, "(SIGTERM), before it had come back"),
        ("mark.with_name('entered.0.1').touch(); leave()", 0, "is started again"),
    ],
)
def test_a_marked_worker_is_started_again(
    tmp_path: Path, second: str, status: int, words: str
) -> None:
    job = Job(tmp_path, restarts=1)
    mark_all(job)
    leave = "mark.rename(mark.with_name(f'left.{rank}')); sys.exit(0)"
    then(
        job,
        0,
        "process = mark.with_name('process.0').read_text()\n"
        f"def leave(): {leave}\n"
        "def wait(): (folder / 'waits').touch(); time.sleep(60)\n"
        f"if process == '1': {second}\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    gone(job, 0)
    if second == "wait()":
        job.wait_for((tmp_path / "waits").exists)
    else:
        time.sleep(0.5)  # the second process has ended, too
    for rank in (2, 1):
        then(job, rank, leave)
    found, said = job.end()
    assert found == status, said
    first, *others = said.splitlines()
    assert first.endswith(
        "worker 0 ended by signal 9 (SIGKILL); worker(s) [1, 2] go on"
    )
    assert others[0] == "codedgrad run: worker 0 is started again"
    assert words in others[-1]
    assert len(others) <= 2  # it is started once


def test_those_who_cannot_go_on_end_with_the_first_status(tmp_path: Path) -> None:
    job = Job(tmp_path)
    mark_all(job)
    then(job, 1, "os.kill(os.getpid(), signal.SIGSEGV)")
    gone(job, 1)
    time.sleep(0.2)  # the supervisor has seen it, too
    then(job, 0, "mark.unlink(); sys.exit(1)")  # and worker 2 hangs
    status, said = job.end()
    assert status == 128 + signal.SIGSEGV
    assert "worker 0 ended with status 1; ending worker(s) [2]" in said


def test_a_worker_that_fails_by_itself_is_not_outlived(tmp_path: Path) -> None:
    job = Job(tmp_path)
    mark_all(job)
    then(job, 1, "mark.unlink(); sys.exit(3)")
    assert job.end()[0] == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_supervisor_that_is_ended_leaves_nobody(
    tmp_path: Path, how: signal.Signals
) -> None:
    job = Job(tmp_path)
    job.process.send_signal(how)
    assert job.end()[0] != 0


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="/no/such/program cannot be started"):
        supervisor.run(["/no/such/program"], 2, {})
