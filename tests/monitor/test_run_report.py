"""`codedgrad report`: the page, the trace, the metrics file."""

from __future__ import annotations

import html.parser
import json
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad import __main__ as cli
from codedgrad.lab import traces
from codedgrad.lab.traces import Recorder
from codedgrad.monitor.prometheus import PrometheusFile
from codedgrad.monitor.report import Estimate, RunRecord, StepReport
from codedgrad.monitor.runlog import read_run

if TYPE_CHECKING:
    from pathlib import Path

WORKERS, STEPS = 4, 40


def report(step: int, worker: int) -> StepReport:
    """Worker 3 is 8 x slow: abandoned after 130 ms, every third step left out."""
    slow = worker == 3
    return StepReport(
        step=step,
        step_s=0.14,
        compute_s=0.13 if slow else 0.10,
        wait_s=0.0 if slow else 0.04,
        backpressure_s=0.0,
        redundant_passes=0 if slow else 1,
        abandoned=slow,
        fast_forwarded=slow and step % 3 == 0,
        loss=2.0 / (step + 1),
        arrivals_s={0: 0.1, 1: 0.1, 2: 0.1},
        begin_s=1000.0 + 0.15 * step,
        help_s=0.0 if slow else 0.025,
        send_s=0.001,
        decode_s=0.002,
        apply_s=0.01,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for worker in range(WORKERS):
        recorder = Recorder(tmp_path / "run", worker)
        for step in range(STEPS):
            recorder.step(report(step, worker), 0.1625 if worker == 3 else 1.0)
        recorder.close()
    return tmp_path / "run"


def test_figures_of_a_run(run: Path) -> None:
    log = read_run(run)
    assert log.workers == WORKERS
    np.testing.assert_allclose(log.measured_s(), 0.14)
    forwarded = np.arange(STEPS) % 3 == 0
    np.testing.assert_allclose(log.everybody_s(), np.where(forwarded, 0.1, 0.8))
    np.testing.assert_allclose(log.late_share(), [0, 0, 0, 1])
    assert np.isnan(log.arrivals_s[:, 3]).all()
    assert log.elapsed_s()[-1] == pytest.approx(0.15 * (STEPS - 1) + 0.14)
    assert traces.read(run).size == WORKERS  # the planner reads the same files


class Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in ("src", "href")]


def test_the_page_needs_nothing_else(run: Path, capsys: object) -> None:
    assert cli.main(["report", str(run), "--trace", str(run / "trace.json")]) == 0
    page = (run / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.found) == 5
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert "Persistent: worker(s) 3" in page
    assert "http" not in page


def test_the_page_tells_what_was_estimated(run: Path) -> None:
    for worker in range(2):
        record = RunRecord()
        for step in range(STEPS):
            truth = 0.1 if step < 30 else float("nan")
            record.settle(Estimate(step, 0, 0.25, 0.12, 0.2, truth))
        record.save_estimates(run / f"decoder-{worker}.csv")
    log = read_run(run)
    assert len(log.estimates) == 2 * STEPS
    assert log.estimates[0] == Estimate(0, 0, 0.25, 0.12, 0.2, 0.1)
    assert not log.estimates[-1].known
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "What was estimated" in page
    assert "80 slices of 40 steps" in page
    assert "0.1 (1.20 x as much was expected)" in page
    links = Links()
    links.feed(page)
    assert len(links.found) == 6
    path = run / "decoder-1.csv"
    path.write_text(path.read_text()[:-12])
    with pytest.raises(ConfigError, match=r"decoder-1\.csv, line"):
        read_run(run)


def test_the_chrome_trace_has_a_process_per_worker(run: Path) -> None:
    cli.main(["report", str(run), "--trace", str(run / "trace.json")])
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == set(range(WORKERS))
    names = {e["name"] for e in spans}
    assert names == {"COMPUTE", "LATE", "HELP", "SEND", "WAIT", "APPLY", "DECODE"}
    assert {e["name"] for e in spans if e["pid"] == 3} & {"COMPUTE", "LATE"} == {"LATE"}
    back = traces.read(run / "trace.json")  # it is a log that can be read again
    assert back.compute[0, 0] == pytest.approx(0.1)


def test_metrics_are_rewritten_in_one_move(tmp_path: Path) -> None:
    file = PrometheusFile(tmp_path / "codedgrad.prom", worker=2, every=3)
    for step in range(7):
        file.step(report(step, 0))
    text = (tmp_path / "codedgrad.prom").read_text()
    assert 'codedgrad_steps_total{worker="2"} 6' in text
    assert 'codedgrad_step_seconds_total{worker="2"} 0.84' in text
    assert "# TYPE codedgrad_redundant_passes_total counter" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "codedgrad.prom"]


def test_metrics_of_estimated_steps(tmp_path: Path) -> None:
    file = PrometheusFile(tmp_path / "codedgrad.prom", worker=0, every=2)
    settled = {"settled": 2, "missing": 0.25, "predicted_error": 0.1, "refused": 1}
    file.step(replace(report(0, 0), **settled))
    file.step(replace(report(1, 0), true_errors=((0, 0.05), (0, 0.25))))
    text = (tmp_path / "codedgrad.prom").read_text()
    for name, value in (
        *(("settled_slices", "2"), ("refused_rows", "1"), ("predicted_error", "0.2")),
        *(("true_error", "0.3"), ("true_error_slices", "2")),
    ):
        assert f'codedgrad_{name}_total{{worker="0"}} {value}\n' in text


def test_bad_folders(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no worker-\*\.csv"):
        read_run(tmp_path)
    path = run / "worker-1.csv"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ConfigError, match=r"worker-1\.csv, line"):
        read_run(run)


def test_chromium_shows_the_page(run: Path, tmp_path: Path) -> None:
    """Rendered without a network, and looked at: all five pictures have colours."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here (tests/run.sh installs it where it can)")
    from matplotlib import image

    cli.main(["report", str(run)])
    shot = tmp_path / "page.png"
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--hide-scrollbars", "--window-size=1000,2600",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}",
         (run / "report.html").as_uri()],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    pixels = (255 * image.imread(shot)[:, :, :3]).round().astype(int)

    def share(colour: str) -> float:
        wanted = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        return float((abs(pixels - wanted).max(axis=2) < 12).mean())

    assert share("E69F00") > 0.01  # the late worker, in the heat map and the bars
    assert share("0072B2") > 0.01  # compute
    assert share("009E73") > 0.001  # help
    assert share("D55E00") > 0.0002  # waiting for everybody
    used = np.flatnonzero((pixels < 250).any(axis=(1, 2)))
    assert used[-1] - used[0] > 1500  # all of the page, not an error message
