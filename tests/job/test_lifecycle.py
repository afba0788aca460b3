"""What a worker does when it leaves, in a job whose engine is a fake."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from job.fakes import fake_runtime

import codedgrad
from codedgrad.errors import EnvironmentSetupError, MismatchError, WorkerError
from codedgrad.job import environment, lifecycle, runtime


class Job:
    """A job that notes in `calls` what a worker that leaves does, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, **engine: Any) -> None:
        self.calls: list[str] = []
        ended = SimpleNamespace(test=lambda: True)
        channel = SimpleNamespace(
            start_barrier=lambda: self.note("leaves together") or ended,
            abort=lambda status: self.note(f"aborts with {status}"),
            unmark_survivor=lambda _, **__: None,
        )
        usual = {
            "publish": lambda _: None,
            "gather": lambda _: ([b"at the end of the job\0"] * 2, []),
            "stop": lambda _: self.note("stops the engine") or True,
            "fail": self.note,
        }
        self.runtime = fake_runtime(2, channel=channel, **(usual | engine))
        part = SimpleNamespace(stop=lambda _: self.note("stops a part") or True)
        self.runtime.parts["part"] = part
        patch.setattr(runtime, "_current", self.runtime)
        patch.setattr(lifecycle, "_crashed", False)
        patch.setattr(lifecycle, "_deserted", None)
        patch.setattr(lifecycle, "_script", None)

    def note(self, call: str) -> None:
        self.calls.append(call)


def test_a_worker_waits_for_all_and_leaves_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job(monkeypatch)
    codedgrad.shutdown()
    assert job.calls == ["stops a part", "stops the engine", "leaves together"]
    assert not codedgrad.is_initialized()
    codedgrad.shutdown()  # a second one does nothing
    lifecycle._at_exit()
    assert len(job.calls) == 3


def test_a_process_of_a_worker_joins_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes are not forked they run a script without a guard once more."""
    parent = SimpleNamespace(pid=17)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setenv("CODEDGRAD_JOINED", "17")
    with pytest.raises(EnvironmentSetupError, match="if __name__ == '__main__'"):
        codedgrad.init()
    monkeypatch.setenv("CODEDGRAD_JOINED", "18")  # that of somebody farther up
    assert not environment.parent_has_joined()
    running = SimpleNamespace(_inheriting=True)  # the script, for the second time
    monkeypatch.setattr(multiprocessing, "current_process", lambda: running)
    assert environment.parent_has_joined()


def test_after_a_failure_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(monkeypatch, failed=True, gather=None)
    codedgrad.shutdown()
    assert job.calls == ["stops a part", "stops the engine"]


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("failed", [True, False])
def test_who_leaves_others_behind_aborts(
    failed: bool, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPI_Finalize would wait for the worker that has not said goodbye, for ever."""
    job = Job(monkeypatch, failed=failed)
    job.runtime.engine.stop = lambda _: False
    if by_hand:
        codedgrad.shutdown()
        assert "aborts with 1" not in job.calls
    lifecycle._at_exit()
    assert job.calls[-1] == "aborts with 1"


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_engine_stops_whatever_ends_the_wait_at_the_end(
    by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It polls MPI, which must not be over before."""
    places = [b"at the end of the job\0", b"in a barrier\0"]
    job = Job(monkeypatch, gather=lambda _: (places, []))
    if by_hand:
        with pytest.raises(MismatchError, match="worker 1 in a barrier"):
            codedgrad.shutdown()
    else:
        lifecycle._at_exit()
    assert "stops the engine" in job.calls
    assert ("aborts with 1" in job.calls) is not by_hand


def test_who_made_fewer_steps_is_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = [b"at the end of the job\0worker1:%d" % n for n in (8, 5)]
    job = Job(monkeypatch, gather=lambda _: (ends, []))
    with pytest.raises(MismatchError, match="8 were made, but worker 1 made 5; the mo"):
        codedgrad.shutdown()
    assert job.calls == ["stops a part", "stops the engine", "leaves together"]


def test_an_exit_with_an_error_is_told_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job(monkeypatch)
    end = SimpleNamespace(failure=lambda: "its script ended with sys.exit(3)")
    monkeypatch.setattr(lifecycle, "_script", end)
    lifecycle._at_exit()
    assert job.calls == [
        "worker 0 failed: its script ended with sys.exit(3)",
        "stops a part",
        "stops the engine",
    ]


def test_who_fails_at_the_end_stops_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gather(timeout_s: float) -> None:
        raise WorkerError("worker 1 failed: disk full")

    job = Job(monkeypatch, gather=gather)
    with caplog.at_level(logging.ERROR, logger="codedgrad"):
        lifecycle._at_exit()
    assert job.calls[-3:] == ["stops a part", "stops the engine", "aborts with 1"]
    assert "worker 1 failed: disk full" in caplog.text


def test_an_exception_is_told_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(monkeypatch)
    shown: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda *seen: shown.append(seen[1]))
    lifecycle._tell_others_of_exceptions()
    sys.excepthook(SystemExit, SystemExit(0), None)
    assert job.calls == []
    sys.excepthook(OSError, OSError("disk full"), None)
    assert job.calls == ["worker 0 failed: OSError: disk full"]
    assert len(shown) == 2
    codedgrad.shutdown()
    assert job.calls[1:] == ["stops a part", "stops the engine"]


def test_records_are_written_whatever_one_of_them_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[str] = []

    def full() -> None:
        raise OSError("no space left")

    monkeypatch.setattr(lifecycle, "_before_leaving", [])
    lifecycle.before_leaving(lambda: written.append("log"))
    lifecycle.before_leaving(full)
    codedgrad.shutdown()
    codedgrad.shutdown()
    assert written == ["log"]
    assert "not written: no space left" in caplog.text
