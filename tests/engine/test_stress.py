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
WHEEL_TIMES = 5
BUILDS = [
    ("thread", ["-fsanitize=thread"], (3, 2000, 60)),
    ("address", ["-fsanitize=address,undefined"], (5, 6000, 60)),
    ("plain", [], (8, 10_000, 30)),
]


FLAGS = ["-std=c++17", "-O1", "-g1", "-pthread", "-Icsrc", "-Itests/engine"]
SIDE_BY_SIDE = os.cpu_count() or 1


def build(flags: list[str], folder: Path, programs: list[str]) -> list[Path]:
    """Compiles programs of this folder into `folder`; returns their paths."""
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler, "no C++ compiler, although the engine was built"

    def compiled(source: str) -> str:
        out = str(folder / f"{source.replace('/', '-')}.o")
        command = [compiler, *FLAGS, *flags, "-c", source, "-o", out]
        subprocess.run(command, cwd=ROOT, check=True)
        return out

    mains = [f"tests/engine/{name}.cpp" for name in programs]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        # The longest first, so that none is left over at the end.
        ordered = sorted([*SOURCES, *mains], key=lambda s: "estimator" not in s)
        objects = dict(zip(ordered, pool.map(compiled, ordered), strict=True))
    common = [objects[source] for source in SOURCES]
    for name, main in zip(programs, mains, strict=True):
        link = [compiler, "-pthread", *flags, *common, objects[main]]
        subprocess.run([*link, "-o", str(folder / name)], check=True)
    return [folder / name for name in programs]


def run(program: Path, *arguments: str) -> None:
    done = subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, (program.name, arguments, done.stderr[-4000:])
    assert done.stdout == "ok\n"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "flags", "size"), BUILDS, ids=[b[0] for b in BUILDS])
def test_stress(
    name: str, flags: list[str], size: tuple[int, int, int], tmp_path: Path
) -> None:
    programs = ["stress", "wheel"] if name == "thread" else ["stress"]
    stress, *others = build(flags, tmp_path, programs)
    for wheel in others:
        run(wheel, str(WHEEL_TIMES))
    workers, steps, delay_us = size
    for mode, share in MODES:
        numbers = (workers, steps // share, delay_us, 7)
        run(stress, *map(str, numbers), *mode)
