"""In a notebook, one worker goes on after a cell that has failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_failed_cell_does_not_poison_the_next() -> None:
    script = Path(__file__).parent / "notebook.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all cells are right" in done.stdout
