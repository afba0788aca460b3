"""How a script ends is found out, in processes that end in every way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from codedgrad.job import exit_status

# The file is loaded by itself: to import the package takes seconds.
SCRIPT = f"""
import atexit, importlib.util, sys
spec = importlib.util.spec_from_file_location("alone", {exit_status.__file__!r})
alone = importlib.util.module_from_spec(spec)
spec.loader.exec_module(alone)
def work():
    end = alone.ScriptEnd()
    atexit.register(lambda: print("FOUND", end.failure()))
work()
def stop(*status):
    sys.exit(*status)
"""
ENDS = {
    "": None,
    "stop()": None,
    "stop(0)": None,
    "stop(None)": None,
    "stop(False)": None,
    "stop(1)": "sys.exit(1)",
    "stop(True)": "sys.exit(True)",
    "stop('disk full')": "sys.exit('disk full')",
    "exit(3)": "sys.exit(3)",
    "quit(code=3)": "sys.exit(3)",
    "quit()": None,
    # An exit that is caught ends nothing.
    "try: stop(2)\nexcept SystemExit: print('goes on')": None,
    "try: stop(2)\nexcept SystemExit: stop(0)": None,
    "try: stop(2)\nfinally: print('cleans up')": "sys.exit(2)",
    "import threading\nt = threading.Thread(target=stop, args=(2,))\n"
    "t.start(); t.join()": None,
}


@pytest.mark.parametrize("how", ["-c", "file"])
@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_status(end: str, how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + end)
    command = [script] if how == "file" else ["-c", SCRIPT + end]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False
    )
    found = done.stdout.split("FOUND ")[1].strip()
    assert found == (f"its script ended with {ENDS[end]}" if ENDS[end] else "None")
