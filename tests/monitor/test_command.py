"""`codedgrad report`: the page and the trace."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad import __main__ as cli
from codedgrad.lab import traces
from codedgrad.monitor.record import Estimate, RunRecord
from codedgrad.monitor.runlog import read_run

if TYPE_CHECKING:
    from pathlib import Path

WORKERS, STEPS = 4, 40  # of the fixture `run`


class Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in ("src", "href")]


def test_the_page_needs_nothing_else(run: Path) -> None:
    assert cli.main(["report", str(run), "--trace", str(run / "trace.json")]) == 0
    page = (run / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.found) == 5
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert "Persistent: worker(s) 3" in page
    table = page[page.index("<table>") : page.index("</table>")]
    titles = re.findall("<th>(.*?)</th>", table)
    cells = re.findall("<td>(.*?)</td>", table)[: len(titles)]
    assert dict(zip(titles, cells, strict=True)).items() >= {
        *(("worker", "0"), ("late", "0 %"), ("compute", "100.00 ms")),
        *(("wait", "40.00 ms"), ("help", "25.00 ms"), ("decode", "2.00 ms")),
        *(("apply", "10.00 ms"), ("redundant", "40")),
    }
    assert "http" not in page


def estimate(step: int, truth: float) -> Estimate:
    return Estimate(
        step, bucket=0, missing=0.25, predicted=0.12, bound=0.2, truth=truth
    )


def test_the_page_tells_what_was_estimated(run: Path) -> None:
    for worker in range(2):
        record = RunRecord()
        for step in range(STEPS):
            truth = 0.1 if step < 30 else float("nan")
            record.settle(estimate(step, truth))
        record.save_estimates(run / f"decoder-{worker}.csv")
    log = read_run(run)
    assert len(log.estimates) == 2 * STEPS
    assert log.estimates[0] == estimate(0, 0.1)
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
