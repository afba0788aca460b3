"""The planner is right where the answer is obvious, and on the published logs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad import __main__ as cli
from codedgrad.lab import simulate, traces
from codedgrad.lab.simulate import policies
from codedgrad.lab.simulate.plan import plan

SHARED = Path(__file__).parents[4] / "shared" / "traces"
RANDOM = np.random.default_rng(0)
needs_logs = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the published logs are not here"
)


def one_slow(steps: int = 60, n: int = 8) -> np.ndarray:
    ratios = 1.0 + 0.02 * RANDOM.random((steps, n))
    ratios[:, 3] *= 8.0
    return ratios


def test_a_persistent_straggler_is_worth_a_code() -> None:
    found = plan(simulate.from_ratios(one_slow()))
    assert found.recommend.startswith("spread")
    assert found.speedup_low <= found.speedup <= found.speedup_high
    assert 5.0 < found.speedup <= found.bound_speedup
    assert "1 worker(s) slow in most steps" in found.reason
    assert found.steps == (30, 30)
    few = plan(simulate.from_ratios(one_slow(steps=20)))
    assert few.steps == (20, 20)  # the same ones, so there is one figure
    shown = {row["policy"]: row["speedup"] for row in few.table}
    assert shown[few.recommend] == pytest.approx(few.speedup)


@pytest.mark.parametrize("n", [4, 6, 8])
def test_a_late_shard_is_divided_among_the_helpers(n: int) -> None:
    times = simulate.from_ratios(one_slow(n=n))
    assert f"micro={n - 1}," in plan(times).recommend
    for text, pieces in (("spread", min(4, n - 1)), ("spread:same_bits=1", 4)):
        more = f"{text}{',' if ':' in text else ':'}micro={pieces}"
        assert (policies.run(text, times).step == policies.run(more, times).step).all()


def test_equal_workers_leave_it_off() -> None:
    even = 1.0 + 0.01 * RANDOM.random((60, 8))
    found = plan(simulate.from_ratios(even))
    assert found.recommend == "off"
    assert (found.speedup, found.speedup_low, found.speedup_high) == (1.0, 1.0, 1.0)
    assert "leave it off" in found.reason


def test_a_cost_of_micro_batches_is_counted() -> None:
    times = simulate.from_ratios(np.where(RANDOM.random((60, 8)) < 0.05, 1.4, 1.0))
    assert plan(times, micro_cost=1.0, same_bits=True).recommend == "off"
    found = plan(times, micro_cost=1.0)
    assert found.speedup <= plan(times).speedup


def test_the_choices_of_passes_and_help() -> None:
    found = plan(simulate.from_log(traces.Log(one_slow())), micro_cost=0.1)
    whole, bits, shards = found.choices
    micro = int(found.recommend.split("micro=")[1].split(",")[0])
    assert bits["calm"] == pytest.approx(1.0 + 0.1 * np.log2(micro))
    assert whole["calm"] == shards["calm"] == 1.0
    assert whole["speedup"] > bits["speedup"] > shards["speedup"]


def test_one_worker_has_nothing_to_plan() -> None:
    with pytest.raises(ConfigError, match="one worker"):
        plan(simulate.from_ratios(np.ones((5, 1))))


def test_two_workers_and_two_steps() -> None:
    found = plan(simulate.from_ratios(np.array([[1.0, 9.0], [1.0, 9.0]])))
    assert any("only 2 steps" in note for note in found.notes)


@needs_logs
@pytest.mark.parametrize("path", sorted(SHARED.glob("ec2_*.npz")), ids=lambda p: p.stem)
def test_ec2_is_worth_it(path: Path) -> None:
    times = simulate.from_log(traces.read(path))
    found = plan(times)
    assert found.recommend != "off"
    assert found.speedup >= 0.8 * found.bound_speedup


@needs_logs
@pytest.mark.parametrize(
    "path",
    sorted(SHARED.glob("mlperf_*.npz")),
    ids=lambda p: p.stem,
)
def test_dedicated_machines_leave_it_off(path: Path) -> None:
    found = plan(simulate.from_log(traces.read(path)))
    if "juwels6_steps" in path.name:  # one worker stops for 30 windows now and then
        assert found.speedup_low > 1.1
    else:
        assert found.recommend == "off"


@needs_logs
def test_speed() -> None:
    """The limit is generous: three times what a quiet core needs."""
    log = traces.read(SHARED / "aws_lambda_cnn_desktop4_b2048_canada.npz")
    times = simulate.from_ratios(np.tile(log.ratios(), (10, 1)))
    begin = time.process_time()
    simulate.run("spread:micro=8,copies=4", times)
    assert time.process_time() - begin < 30.0


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(list(words))
    return status, *capsys.readouterr()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "log.npz")
    traces.Log(one_slow()).save(path)
    status, out, _ = command(capsys, "plan", path, "--json")
    assert status == 0
    assert json.loads(out)["recommend"].startswith("spread")
    status, out, _ = command(capsys, "plan", path)
    assert "use: codedgrad.CodedGradient(model, codedgrad.codes.spread(" in out
    status, out, _ = command(
        capsys, "simulate", path, "--policy", "spread:micro=8", "--workers", "6",
        "--model", "stall", "--json",
    )  # fmt: skip
    assert json.loads(out)["workers"] == 6
    assert json.loads(out)["model"] == "stall"
    status, out, _ = command(
        capsys, "simulate", path, "--workers", "64", "--sample",
        "--policy", "sync", "--policy", "backup:drop=2",
    )  # fmt: skip
    assert "64 workers" in out
    assert "backup:drop=2" in out
    assert command(capsys, "trace", "info", path)[0] == 0
    status, out, _ = command(capsys, "trace", "info", path, "--json")
    assert json.loads(out)["kind"] == "persistent"
    for action, name in (("plot", "a.png"), ("fit", "a.json"), ("convert", "b.npz")):
        out_path = tmp_path / name
        assert command(capsys, "trace", action, path, "--out", str(out_path))[0] == 0
        assert out_path.stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "/no/log.npz"], "no such file"),
        (["simulate", "LOG", "--policy", "sprad"], "no policy 'sprad'"),
        (["simulate", "LOG", "--workers", "99"], "--sample"),
        (["simulate", "LOG", "--workers", "0"], "--workers must be at least 1"),
        (["simulate", "profile:mars"], "nor one of"),
    ],
)
def test_commands_say_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    path = str(tmp_path / "log.npz")
    traces.Log(one_slow()).save(path)
    status, _, err = command(capsys, *[path if w == "LOG" else w for w in words])
    assert status == 2
    assert message in err
    assert "Traceback" not in err
