"""The picture of arrivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from codedgrad import ConfigError, monitor
from codedgrad.monitor.record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("steps", [1, 1500])
def test_absent_rows_are_orange(
    make_record: Callable[..., RunRecord], tmp_path: Path, steps: int
) -> None:
    from matplotlib import image

    path = tmp_path / "arrivals.png"
    monitor.plot_arrivals(make_record(steps), 3, path)
    pixels = image.imread(path)[:, :, :3]
    orange = np.array([0xE6, 0x9F, 0x00]) / 255
    assert np.isclose(pixels, orange, atol=0.01).all(-1).mean() > 0.01


def test_a_record_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no steps"):
        monitor.plot_arrivals(RunRecord(), 3, tmp_path / "none.png")
