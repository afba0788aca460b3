#!/usr/bin/env bash
# Runs mpirun with the arguments that this machine's MPI (Open MPI 4, 5, MPICH) wants.
#
#   bash launch/mpirun.sh -n 4 python launch/train.py --task digits
#   bash launch/mpirun.sh -n 8 --hostfile hosts python launch/train.py --task digits
#
# CG_DRY_RUN=1 prints the command instead of running it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ $# = 0 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
cg_mpirun_args "$@"
if [ -n "${CG_DRY_RUN:-}" ]; then
  echo mpirun "${CG_MPIRUN_ARGS[@]}" "$@"
  exit 0
fi
exec mpirun "${CG_MPIRUN_ARGS[@]}" "$@"
