"""The engine under the sanitizers: 10,000 small steps with random delays."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = [
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("csrc/engine", "csrc/decoder")
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
]
BUILDS = [
    ("thread", ["-fsanitize=thread"], (3, 2000, 60)),
    ("address", ["-fsanitize=address,undefined"], (5, 10_000, 60)),
    ("plain", [], (8, 10_000, 30)),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "flags", "size"), BUILDS, ids=[b[0] for b in BUILDS])
def test_stress(
    name: str, flags: list[str], size: tuple[int, int, int], tmp_path: Path
) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler, "no C++ compiler, although the engine was built"
    program = tmp_path / f"stress-{name}"
    kernels = [str(p.relative_to(ROOT)) for p in (ROOT / "csrc/ops/cpu").glob("*.cpp")]
    build = [
        compiler,
        "-std=c++17",
        "-O1",
        "-g",
        "-pthread",
        "-Icsrc",
        "-Itests/engine",
    ]
    build += flags
    subprocess.run(
        [*build, *SOURCES, *kernels, "-o", str(program)], cwd=ROOT, check=True
    )
    workers, steps, delay_us = size
    for mode, share in MODES:
        done = subprocess.run(
            [
                str(program),
                str(workers),
                str(steps // share),
                str(delay_us),
                "7",
                *mode,
            ],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, (mode, done.stderr[-4000:])
        assert done.stdout == "ok\n"
