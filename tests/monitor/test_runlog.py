"""The log: its bytes, and that it is read back, also an old one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad.lab import simulate, traces
from codedgrad.monitor.chrome import write_chrome_trace
from codedgrad.monitor.html import write_report
from codedgrad.monitor.recorder import Recorder
from codedgrad.monitor.report import LOGGED
from codedgrad.monitor.runlog import read_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from codedgrad.monitor.report import StepReport

WORKERS, STEPS = 4, 40  # of the fixture `run`
# The log of `exact_report` as the first version wrote it. New columns may join these.
FIRST = """\
step,worker,seconds,done,begin_s,step_s,compute_s,send_s,help_s,wait_s,backpressure_s,\
decode_s,apply_s,redundant_passes,abandoned,fast_forwarded,loss,arrivals
17,0,0.130718,0.5,1700000000.123457,0.141593,0.065359,1.23457e-07,0.025,0.0412346,\
12.3457,2e-05,1.23457e+06,3,1,0,0.693147,0:0.123457 2:-0.001 1:1.23457e+06
"""
NEW = {column.heading for column in LOGGED if not column.in_old_logs}


def without_new_columns(text: str) -> str:
    header, *lines = (line.split(",") for line in text.split("\n"))
    old = [i for i, name in enumerate(header) if name not in NEW]
    rows = [[header[i] for i in old]]
    rows += [[line[i] for i in old] if line != [""] else line for line in lines]
    return "\n".join(",".join(row) for row in rows)


def write_log(report: StepReport, folder: Path, worker: int) -> str:
    recorder = Recorder(folder, worker)
    recorder.step(report, 0.5)
    recorder.close()
    return (folder / f"worker-{worker}.csv").read_bytes().decode()


def test_the_bytes_of_the_log(exact_report: StepReport, tmp_path: Path) -> None:
    assert without_new_columns(write_log(exact_report, tmp_path, 0)) == FIRST


def test_worker_0_alone_logs_arrivals(exact_report: StepReport, tmp_path: Path) -> None:
    golden = FIRST.replace("17,0,", "17,1,")
    golden = golden.replace("0:0.123457 2:-0.001 1:1.23457e+06", "")
    assert without_new_columns(write_log(exact_report, tmp_path, 1)) == golden


def test_seconds_of_steps_that_were_not_finished(
    make_report: Callable[..., StepReport], tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path, 1)
    recorder.step(make_report(compute_s=0.25, fast_forwarded=True), 0.0)
    recorder.step(make_report(compute_s=0.25), 0.0)
    recorder.close()
    lines = (tmp_path / "worker-1.csv").read_text().splitlines()[1:]
    assert [line.split(",")[2:4] for line in lines] == [["nan", "0"], ["0.25", "0"]]


def test_all_columns_are_read(exact_report: StepReport, tmp_path: Path) -> None:
    for worker in range(3):
        write_log(exact_report, tmp_path, worker)
    log = read_run(tmp_path)
    assert log.steps.tolist() == [17]
    assert log.arrivals_s[0] == pytest.approx([0.123457, 1234570.0, -0.001])
    assert log.columns["seconds"][0, 1] == 0.130718
    for column in LOGGED:
        if column.kind == "number" and column.name != "step":
            value = log.columns[column.heading][0, 1]
            expected = float(getattr(exact_report, column.name))
            assert value == pytest.approx(expected, rel=1e-5)
    planned = traces.read(tmp_path)  # the planner reads the same files
    assert planned.compute.tolist() == [[0.130718] * 3]


def test_an_old_log_is_read(tmp_path: Path) -> None:
    for worker in range(3):
        path = tmp_path / f"worker-{worker}.csv"
        path.write_text(FIRST.replace("17,0,", f"17,{worker},"))
    log = read_run(tmp_path)
    assert log.columns["loss"].tolist() == [[0.693147] * 3]
    for name, values in log.columns.items():
        assert np.isnan(values).all() == (name in NEW)
    write_report(log, tmp_path / "report.html")
    write_chrome_trace(log, tmp_path / "trace.json")
    assert traces.read(tmp_path).compute.tolist() == [[0.130718] * 3]


def test_figures_of_a_run(run: Path) -> None:
    log = read_run(run)
    assert log.workers == WORKERS
    np.testing.assert_allclose(log.measured_s(), 0.14)
    forwarded = np.arange(STEPS) % 3 == 0
    np.testing.assert_allclose(log.everybody_s(), np.where(forwarded, 0.1, 0.8))
    np.testing.assert_allclose(log.late_share(), [0, 0, 0, 1])
    assert np.isnan(log.arrivals_s[:, 3]).all()
    assert log.elapsed_s()[-1] == pytest.approx(0.15 * (STEPS - 1) + 0.14)
    assert log.loss[1] == 1.0
    assert traces.read(run).size == WORKERS


def test_the_log_of_a_drop_in_has_no_loss(
    make_report: Callable[..., StepReport], tmp_path: Path
) -> None:
    for worker in range(2):
        recorder = Recorder(tmp_path, worker)
        for number in range(3):
            recorder.step(make_report(step=number, loss=np.nan), 1.0)
        recorder.close()
    log = read_run(tmp_path)
    assert np.isnan(log.loss).all()
    write_report(log, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Who was late" in page
    assert "Loss against time" not in page
    assert "nan" not in page.split("<img")[0]


def test_who_is_late_in_a_run_is_not_planned_as_usual(
    make_report: Callable[..., StepReport], tmp_path: Path
) -> None:
    for worker in range(4):  # the last one is 5 x slow, and begins one step of four
        recorder = Recorder(tmp_path, worker)
        for number in range(40):
            late = worker == 3 and number % 4 > 0
            seconds = 0.5 if worker == 3 else 0.1
            report = make_report(step=number, compute_s=seconds, fast_forwarded=late)
            recorder.step(report, 0.0 if late else 1.0)
        recorder.close()
    times = simulate.from_log(traces.read(tmp_path))
    assert times.filled == 30
    assert "usually took" in times.filled_by
    np.testing.assert_allclose(times.alone(), np.tile([1.0, 1.0, 1.0, 5.0], (40, 1)))
    assert times.bound() == pytest.approx(4 / (3 + 1 / 5))


def test_bad_folders(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no worker-\*\.csv"):
        read_run(tmp_path)
    path = run / "worker-1.csv"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ConfigError, match=r"worker-1\.csv, line 41: .*cut short"):
        read_run(run)


@pytest.mark.parametrize("name", FIRST.splitlines()[0].split(","))
def test_a_column_that_old_logs_have_must_be_there(tmp_path: Path, name: str) -> None:
    header, line, _ = FIRST.split("\n")
    names = ["other" if n == name else n for n in header.split(",")]
    (tmp_path / "worker-0.csv").write_text(",".join(names) + f"\n{line}\n")
    with pytest.raises(ConfigError, match=f"'{name}'.*not a recording of this version"):
        read_run(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "log", 0)
    with pytest.raises(ConfigError, match="holds the log of another run"):
        Recorder(tmp_path / "log", 0)
    recorder.close()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        Recorder(tmp_path / "file" / "log", 0)
