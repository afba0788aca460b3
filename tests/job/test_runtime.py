"""Before `init` there is no runtime; a gather collects, or ends with an error."""

from __future__ import annotations

import pytest
from job.fakes import fake_runtime

import codedgrad
from codedgrad.errors import MismatchError, WorkerError
from codedgrad.job import runtime
from codedgrad.job.runtime import Link


def test_not_initialised() -> None:
    assert not codedgrad.is_initialized()
    for call in (codedgrad.rank, codedgrad.size, codedgrad.barrier):
        with pytest.raises(codedgrad.EnvironmentSetupError, match=r"init\(\) first"):
            call()


def test_the_numbers_are_those_of_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_current", fake_runtime(size=3))
    assert codedgrad.is_initialized()
    assert (codedgrad.rank(), codedgrad.size()) == (0, 3)
    assert (codedgrad.local_rank(), codedgrad.local_size()) == (0, 3)
    assert (codedgrad.cross_rank(), codedgrad.cross_size()) == (0, 1)


def test_gather_waits_until_all_have_come() -> None:
    published: list[bytes] = []
    answers = iter([(None, [1]), ([b"in a test\0mine", b"in a test\0\0theirs"], [])])
    job = fake_runtime(publish=published.append, gather=lambda _: next(answers))
    assert job.gather(b"mine", "in a test") == [b"mine", b"\0theirs"]
    assert published == [b"in a test\0mine"]


def test_workers_at_different_places_are_told_so() -> None:
    blobs = [b"in a barrier\0", b"in step 3\0"]
    job = fake_runtime(publish=lambda _: None, gather=lambda _: (blobs, []))
    words = "worker 0 in a barrier; worker 1 in step 3. Run the same"
    with pytest.raises(MismatchError, match=words):
        job.gather(b"", "in a barrier")


def test_a_failure_ends_a_gather() -> None:
    from codedgrad.job import _engine

    def gather(timeout_s: float) -> None:
        raise _engine.EngineFailure("worker 2 failed: disk full")

    job = fake_runtime(publish=lambda _: None, gather=gather)
    with pytest.raises(WorkerError, match="worker 2 failed: disk full"):
        job.gather(b"", "in a test")


def test_a_job_that_has_failed_says_what_to_do() -> None:
    job = fake_runtime(failed=True, failure="worker 2 failed: disk full")
    for call in (job.check, lambda: job.gather(b"", "in a barrier")):
        with pytest.raises(WorkerError, match=r"full\. With this .*: start it again"):
            call()


@pytest.mark.parametrize(("size", "told"), [(1, []), (2, ["worker 0 failed"])])
def test_a_failure_is_told_where_there_is_somebody_to_tell(
    size: int, told: list[str]
) -> None:
    job = fake_runtime(size)
    job.fail("worker 0 failed")
    assert job.engine.said == told


def test_what_could_be_sent_in_the_time_of_the_latency() -> None:
    assert Link(latency_s=1e-4, s_per_mb=1e-3).latency_mb == pytest.approx(0.1)
