"""TensorBoard's files hold the scalars and the picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from codedgrad import monitor
from codedgrad.monitor.report import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from codedgrad.monitor.record import RunRecord

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def events_in(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_the_files_hold_the_scalars(
    make_record: Callable[..., RunRecord], tmp_path: Path
) -> None:
    record = make_record()
    board = monitor.TensorBoardMonitor(tmp_path, workers=3)
    for report in record.reports:
        board.step(report, lr=0.5, metrics={"accuracy": 0.25})
    board.picture(record, 3)
    board.close()
    events = events_in(tmp_path)
    loss = events.Scalars("train/loss")
    assert [e.step for e in loss] == list(range(6))
    assert loss[3].value == pytest.approx(1.7)
    assert events.Scalars("train/accuracy")[5].value == 0.25
    missing = [e.value for e in events.Scalars("straggler/missing")]
    assert missing == [1, 0, 1, 0, 1, 0]
    (image,) = events.Images("straggler/arrivals")
    assert image.width > image.height > 100
    assert set(events.Tags()["scalars"]) >= {  # these names are what users plot
        *("train/loss", "train/lr", "straggler/step_s", "straggler/wait_s"),
        *("straggler/backpressure_s", "straggler/redundant_passes"),
        "straggler/missing",
    }


def test_the_files_hold_the_decoders_errors(
    make_record: Callable[..., RunRecord], tmp_path: Path
) -> None:
    board = monitor.TensorBoardMonitor(tmp_path, workers=3)
    reports = list(make_record(4).reports)
    reports[1] = replace(reports[1], settled=2, missing=0.25, predicted_error=0.1)
    reports[3] = replace(reports[3], true_errors=((1, 0.1), (1, 0.3)))
    for report in reports:
        board.step(report)
    board.close()
    events = events_in(tmp_path)

    def scalars(name: str) -> list[tuple[int, float]]:
        return [(e.step, round(e.value, 6)) for e in events.Scalars(f"decoder/{name}")]

    assert scalars("settled") == [(1, 2), (2, 0), (3, 0)]
    assert scalars("missing") == [(1, 0.25)]
    assert scalars("predicted_error") == [(1, 0.1)]
    assert scalars("true_error") == [(1, 0.2)]
    tags = {column.tag for column in COLUMNS if column.tag is not None}
    assert set(events.Tags()["scalars"]) == tags
