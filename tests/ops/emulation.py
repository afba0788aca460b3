"""The CUDA kernels' Python module, compiled for the processor; see emulated/."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pybind11

ROOT = Path(__file__).parent.parent.parent
_LAUNCH = re.compile(r"(\w+(?:<[\w, ]+>)?)\s*<<<(.*?)>>>\(", re.DOTALL)
_DYNAMIC = re.compile(r"extern __shared__ [^;]*\bunsigned char (\w+)\[\];")


def as_cpp(source: str) -> str:
    """CUDA's own syntax in calls of `emulated`."""
    source = _DYNAMIC.sub(r"auto* \1 = emulated::shared_memory();", source)
    return _LAUNCH.sub(r"emulated::launch(\2)(\1, ", source)


def build(folder: Path) -> Any:
    """Compile into `folder`, and import it from there."""
    sources = []
    for kernel in sorted((ROOT / "csrc/ops/cuda").glob("*.cu")):
        sources.append(str(folder / f"{kernel.stem}.cpp"))
        Path(sources[-1]).write_text(as_cpp(kernel.read_text()))
    module = folder / f"_ops_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [
        ROOT / "tests/ops/emulated",
        ROOT / "csrc",
        pybind11.get_include(),
        sysconfig.get_paths()["include"],
    ]
    command = ["c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
    command += ["-fvisibility=hidden", *(f"-I{i}" for i in includes)]
    bindings = str(ROOT / "csrc/bindings/ops_cuda.cpp")
    subprocess.run([*command, *sources, bindings, "-o", str(module)], check=True)
    spec = importlib.util.spec_from_file_location("_ops_cuda", module)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
