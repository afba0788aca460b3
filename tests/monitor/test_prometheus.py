"""The metrics file: its text, and that it is replaced as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from codedgrad.monitor.prometheus import PrometheusFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from codedgrad.monitor.report import StepReport

# The file after two steps, as the first version wrote it. New metrics may join these.
GOLDEN = """\
# TYPE codedgrad_steps_total counter
codedgrad_steps_total{worker="2"} 2
# TYPE codedgrad_step_seconds_total counter
codedgrad_step_seconds_total{worker="2"} 0.241592654
# TYPE codedgrad_compute_seconds_total counter
codedgrad_compute_seconds_total{worker="2"} 0.115358979
# TYPE codedgrad_wait_seconds_total counter
codedgrad_wait_seconds_total{worker="2"} 0.0612345678
# TYPE codedgrad_help_seconds_total counter
codedgrad_help_seconds_total{worker="2"} 0.025
# TYPE codedgrad_backpressure_seconds_total counter
codedgrad_backpressure_seconds_total{worker="2"} 12.3456789
# TYPE codedgrad_decode_seconds_total counter
codedgrad_decode_seconds_total{worker="2"} 2e-05
# TYPE codedgrad_redundant_passes_total counter
codedgrad_redundant_passes_total{worker="2"} 3
# TYPE codedgrad_abandoned_passes_total counter
codedgrad_abandoned_passes_total{worker="2"} 1
# TYPE codedgrad_fast_forwarded_steps_total counter
codedgrad_fast_forwarded_steps_total{worker="2"} 0
# TYPE codedgrad_settled_slices_total counter
codedgrad_settled_slices_total{worker="2"} 2
# TYPE codedgrad_refused_rows_total counter
codedgrad_refused_rows_total{worker="2"} 1
# TYPE codedgrad_predicted_error_total counter
codedgrad_predicted_error_total{worker="2"} 0.2469134
# TYPE codedgrad_true_error_total counter
codedgrad_true_error_total{worker="2"} 0.3012345
# TYPE codedgrad_true_error_slices_total counter
codedgrad_true_error_slices_total{worker="2"} 2
# TYPE codedgrad_loss gauge
codedgrad_loss{worker="2"} 0.693147181
"""


def test_the_text_of_the_file(
    make_report: Callable[..., StepReport], exact_report: StepReport, tmp_path: Path
) -> None:
    file = PrometheusFile(tmp_path / "codedgrad.prom", worker=2, every=2)
    file.step(make_report())
    file.step(exact_report)
    text = (tmp_path / "codedgrad.prom").read_text()
    found, golden = samples(text), samples(GOLDEN)
    assert {key: found[key] for key in golden} == pytest.approx(golden, rel=1e-8)
    types = [line for line in GOLDEN.splitlines() if line[0] == "#"]
    assert set(types) <= set(text.splitlines())


def samples(text: str) -> dict[tuple[str, str], float]:
    """Read a metrics file; the values by name and worker."""
    return {
        (sample.name, sample.labels["worker"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_file_that_cannot_be_written_is_told_once(
    make_report: Callable[..., StepReport],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = PrometheusFile(tmp_path / "gone" / "codedgrad.prom", worker=0, every=1)
    (tmp_path / "gone").rmdir()
    for step in range(3):
        file.step(make_report(step=step))
    assert len(caplog.records) == 1
    assert "codedgrad.prom cannot be written" in caplog.text
    (tmp_path / "gone").mkdir()
    file.write()
    text = (tmp_path / "gone" / "codedgrad.prom").read_text()
    assert samples(text)["codedgrad_steps_total", "0"] == 3


def test_metrics_are_rewritten_in_one_move(
    run_report: Callable[..., StepReport], tmp_path: Path
) -> None:
    file = PrometheusFile(tmp_path / "codedgrad.prom", worker=2, every=3)
    for step in range(7):
        file.step(run_report(step, 0))
    text = (tmp_path / "codedgrad.prom").read_text()
    assert samples(text)["codedgrad_steps_total", "2"] == 6
    assert samples(text)["codedgrad_step_seconds_total", "2"] == pytest.approx(0.84)
    assert "# TYPE codedgrad_redundant_passes_total counter" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "codedgrad.prom"]


def test_before_the_first_step_there_is_no_gauge(tmp_path: Path) -> None:
    PrometheusFile(tmp_path / "codedgrad.prom", worker=0).write()
    text = (tmp_path / "codedgrad.prom").read_text()
    assert samples(text)["codedgrad_steps_total", "0"] == 0
    assert "gauge" not in text


def test_metrics_of_estimated_steps(
    make_report: Callable[..., StepReport], tmp_path: Path
) -> None:
    file = PrometheusFile(tmp_path / "codedgrad.prom", worker=0, every=2)
    file.step(make_report(settled=2, missing=0.25, predicted_error=0.1, refused=1))
    file.step(make_report(step=1, true_errors=((0, 0.05), (0, 0.25))))
    text = (tmp_path / "codedgrad.prom").read_text()
    for name, value in (
        *(("settled_slices", 2), ("refused_rows", 1), ("predicted_error", 0.2)),
        *(("true_error", 0.3), ("true_error_slices", 2)),
    ):
        found = samples(text)[f"codedgrad_{name}_total", "0"]
        assert found == pytest.approx(value)
