"""The engine under the sanitizers, in thousands of small steps with random delays.

Most of the time goes into compiling, so files are compiled side by side, with no more
for the debugger than the numbers of lines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = [
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("csrc/engine", "csrc/decoder", "csrc/ops/cpu")
        for path in (ROOT / folder).glob("*.cpp")
    ),
    "csrc/transport/local_transport.cpp",
    "tests/engine/stress.cpp",
]
# Thread sanitizer slows everything 10 times, and more threads than cores more so.
# With what part of the steps.
MODES: list[tuple[list[str], int]] = [
    ([], 1),
    (["settle"], 2),
    (["compensate"], 4),
    (["pinned"], 8),
    (["device"], 8),
    (["headers"], 4),
    (["deputies"], 8),
]
BUILDS = [
    ("thread", ["-fsanitize=thread"], (3, 2000, 60)),
    ("address", ["-fsanitize=address,undefined"], (5, 6000, 60)),
    ("plain", [], (8, 10_000, 30)),
]


FLAGS = ["-std=c++17", "-O1", "-g1", "-pthread", "-Icsrc", "-Itests/engine"]
SIDE_BY_SIDE = os.cpu_count() or 1


def build(flags: list[str], folder: Path) -> Path:
    """Compiles the program into `folder`; returns its path."""
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler, "no C++ compiler, although the engine was built"

    def compiled(source: str) -> str:
        out = str(folder / f"{source.replace('/', '-')}.o")
        command = [compiler, *FLAGS, *flags, "-c", source, "-o", out]
        subprocess.run(command, cwd=ROOT, check=True)
        return out

    program = folder / "stress"
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        # The longest first, so that none is left over at the end.
        ordered = sorted(SOURCES, key=lambda s: "estimator" not in s)
        objects = list(pool.map(compiled, ordered))
    link = [compiler, "-pthread", *flags, *objects, "-o", str(program)]
    subprocess.run(link, check=True)
    return program


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "flags", "size"), BUILDS, ids=[b[0] for b in BUILDS])
def test_stress(
    name: str, flags: list[str], size: tuple[int, int, int], tmp_path: Path
) -> None:
    program = build(flags, tmp_path)
    workers, steps, delay_us = size
    for mode, share in MODES:
        numbers = (workers, steps // share, delay_us, 7)
        done = subprocess.run(
            [str(program), *map(str, numbers), *mode],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, (name, mode, done.stderr[-4000:])
        assert done.stdout == "ok\n"
