"""Scripts in processes of their own that share one import of torch.

`run_all` starts one process, which imports torch and codedgrad and joins no job, and is
forked for each script. The import takes longer than most of what is tried.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from codedgrad.job import environment

# The child falls out of the loop, so that its script ends as any script does.
_FORK = """
import json, os, sys
import torch, codedgrad
torch.set_num_threads(1)
folder, *scripts = json.load(sys.stdin)
for number, script in enumerate(scripts):
    child = os.fork()
    if not child:
        for fd, name in ((1, "out"), (2, "err")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(f"{folder}/{number}.{name}", flags), fd)
        break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
else:
    sys.exit(0)
exec(script, {"__name__": "__main__"})
"""


class Ended(NamedTuple):
    """How a script has ended; a signal is a negative status, as of subprocess."""

    returncode: int
    stdout: str
    stderr: str


def run_all(scripts: list[str], timeout_s: float = 100.0) -> list[Ended]:
    """Runs them one after another; none has a launcher."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _FORK],
            input=json.dumps([folder, *scripts]),
            env=environment.without_launcher() | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        statuses = [int(word) for word in done.stdout.split()]
        assert len(statuses) == len(scripts)
        texts = [
            [Path(folder, f"{i}.{name}").read_text() for name in ("out", "err")]
            for i in range(len(scripts))
        ]
    return [Ended(s, *text) for s, text in zip(statuses, texts, strict=True)]
