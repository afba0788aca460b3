"""Injected slowness: the plan, the draw, the log, and what a worker feels of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from codedgrad.faults import Injector

from codedgrad import ConfigError, Faults

if TYPE_CHECKING:
    from pathlib import Path


def test_a_process_is_stopped_and_woken() -> None:
    plan = Faults.parse("stop:worker=1,step=4,seconds=0.3", 2)
    assert [plan.stop_s(1, s) for s in (3, 4, 5)] == [0.0, 0.3, 0.0]
    assert plan.stop_s(0, 4) == plan.stall_s(1, 4, 0.1) == 0.0
    script = (
        "import bare\nfrom codedgrad.job.faults import *\n"
        "Injector(Faults.parse('stop:worker=0,step=2,seconds=0.5', 1), 0).begin(2, 1.0)"
    )
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    job = subprocess.Popen([sys.executable, "-c", script], env=os.environ | path)
    _, status = os.waitpid(job.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    begin = time.monotonic()
    assert job.wait(60.0) == 0
    assert time.monotonic() - begin > 0.3


def test_slow_and_stall_by_worker_and_step() -> None:
    plan = Faults.parse(
        "slow:worker=3,factor=8,steps=10-50; stall:worker=1,step=40,seconds=2", 4
    )
    assert [plan.factor(3, s) for s in (9, 10, 49, 50)] == [1, 8, 8, 1]
    assert plan.factor(2, 20) == 1.0
    assert [plan.stall_s(1, s, 0.1) for s in (39, 40, 41)] == [0, 2, 0]
    assert plan.describe().startswith("slow:worker=3")


def test_every() -> None:
    plan = Faults.parse("stall:worker=0,seconds=1,steps=2-99,every=3", 1)
    assert [s for s in range(10) if plan.stall_s(0, s, 0)] == [2, 5, 8]


def test_random_is_seeded_and_as_frequent_as_said() -> None:
    one = Faults.parse("random:probability=0.1,factor=8,seed=1", 8)
    two = Faults.parse("random:probability=0.1,factor=8,seed=1", 8)
    other = Faults.parse("random:probability=0.1,factor=8,seed=2", 8)
    draws = [
        [p.factor(w, s) for w in range(8) for s in range(500)]
        for p in (one, two, other)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) == {1.0, 8.0}
    assert 0.08 < np.mean(np.array(draws[0]) > 1) < 0.12


def write_log(path: Path) -> None:
    times = np.ones((5, 3))
    times[2, 1] = 4.0
    times[3, 0] = np.nan
    np.savez(path, compute=times)


def test_replay_of_a_log(tmp_path: Path) -> None:
    write_log(tmp_path / "log.npz")
    rate = Faults.parse(f"replay:file={tmp_path}/log.npz,model=rate", 3)
    assert [rate.factor(1, s) for s in range(8)] == [1, 1, 4, 1, 1, 1, 1, 4]
    assert rate.factor(0, 3) == 1.0
    assert rate.stall_s(1, 2, 0.5) == 0.0
    stall = Faults.parse(f"replay:file={tmp_path}/log.npz,model=stall", 3)
    assert stall.factor(1, 2) == 1.0
    assert stall.stall_s(1, 2, 0.5) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slwo:worker=1,factor=2", r"no fault 'slwo'.*slow"),
        ("slow:worker=1", r"lacks \['factor'\]"),
        ("slow:worker=4,factor=2", r"must be a number in \[0, 3\]"),
        ("slow:worker=1,factor=0.5", "must be a number"),
        ("slow:worker=1,factor=2,speed=3", "slow takes"),
        ("slow:worker=1,factor=2,steps=5", "write steps=FIRST-STOP"),
        ("random:probability=2,factor=3", r"\[0, 1\]"),
        ("random:probability=0.5", "lacks factor"),
        ("replay:file=/no/such.npz", "cannot replay /no/such.npz"),
        ("stall:worker=1,step=nan,seconds=1", "must be a number"),
    ],
)
def test_bad_plans(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Faults.parse(text, 4)


def test_a_log_of_too_few_workers(tmp_path: Path) -> None:
    write_log(tmp_path / "log.npz")
    with pytest.raises(ConfigError, match="at least 4 workers"):
        Faults.parse(f"replay:file={tmp_path}/log.npz", 4)


def test_no_plan_is_no_fault() -> None:
    assert not Faults.parse(" ; ", 4)


class Needless(Exception):
    pass


def test_a_slow_pass_can_be_left_at_once() -> None:
    injector = Injector(Faults.parse("slow:worker=0,factor=1000", 1), 0)
    injector.begin(0, 0.0)
    time.sleep(0.02)
    looks: list[float] = []  # the first comes after the injector's clock has begun

    def check() -> None:
        looks.append(time.monotonic())
        if looks[-1] - looks[0] > 0.05:
            raise Needless

    with pytest.raises(Needless):
        injector.boundary(check)
    assert 0.05 <= injector.slowed_s < 5.0


def test_a_slow_pass_takes_the_factor() -> None:
    injector = Injector(Faults.parse("slow:worker=0,factor=3", 1), 0)
    injector.begin(0, 0.0)
    begin = time.monotonic()
    time.sleep(0.02)
    injector.boundary(lambda: None)
    assert time.monotonic() - begin >= 0.06


@pytest.mark.parametrize(
    ("text", "status"),
    [("kill:worker=0,step=2,after=0.05", -9), ("exit:worker=0,step=2", 1)],
)
def test_a_process_ends(text: str, status: int) -> None:
    plan = Faults.parse(text, 2)
    assert [bool(plan.death(0, s)) for s in (1, 2, 3)] == [False, True, False]
    assert plan.death(1, 2) is None
    assert plan.factor(0, 2) == 1.0
    assert plan.stop_s(0, 2) == plan.stall_s(0, 2, 0.1) == 0.0
    script = (
        "from codedgrad.faults import *; import sys, time\n"
        "injector = Injector(Faults.parse(sys.argv[1], 1), 0)\n"
        "injector.begin(1, 1.0)\ninjector.begin(2, 1.0)\ntime.sleep(30)"
    )
    job = subprocess.run([sys.executable, "-c", script, text], check=False)
    assert job.returncode == status
