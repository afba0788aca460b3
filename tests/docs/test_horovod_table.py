"""The table of Horovod's tests names those that are here, and says what they show."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "migrating.md").read_text()
ROWS = dict(re.findall(r"^\| `(test_\w+)` \| (.+) \|$", TEXT, re.MULTILINE))


def here() -> set[str]:
    files = (ROOT / "tests" / "parallel").glob("test_hvd_suite_*.py")
    found = (re.findall(r"^def (test_\w+)", f.read_text(), re.MULTILINE) for f in files)
    return {name for names in found for name in names}


def test_every_row_that_runs_or_is_refused_has_its_test() -> None:
    taken = {n for n, says in ROWS.items() if not says.startswith("not taken over")}
    assert taken == here()


def test_the_sums_are_those_of_the_table() -> None:
    kinds = [says.split(":")[0].split(",")[0].split()[0] for says in ROWS.values()]
    runs, refused = kinds.count("runs") + kinds.count("runs;"), kinds.count("refused")
    sums = re.search(
        r"has (\d+) tests.*?: (\d+) run, (\d+) are.*?and (\d+) are not",
        TEXT,
        re.DOTALL,
    )
    assert sums is not None
    left = len(kinds) - runs - refused
    assert [int(x) for x in sums.groups()] == [len(kinds), runs, refused, left]
