#!/usr/bin/env bash
# Runs horovodrun over MPI with the arguments that this machine's MPI wants.
#
#   bash launch/horovodrun.sh -np 4 python launch/train.py --task digits
#   bash launch/horovodrun.sh -np 8 -H node1:4,node2:4 python launch/train.py --task text
#
# `horovodrun --mpi` only calls mpirun; launch/build_horovod.sh installs horovodrun.
# CG_DRY_RUN=1 prints the command instead of running it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ $# = 0 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if ! command -v horovodrun >/dev/null; then
  echo "codedgrad: no horovodrun found; bash launch/build_horovod.sh brings it" >&2
  exit 1
fi
cg_need_mpi
cg_quiet_network "$@"
arguments=(--mpi)
# A worker has two threads, and Open MPI 5 refuses Horovod's own binding arguments.
case $CG_MPI in
  openmpi5) arguments+=("--binding-args=--bind-to none --map-by slot:OVERSUBSCRIBE") ;;
  openmpi4) arguments+=("--binding-args=--bind-to none --map-by slot --oversubscribe") ;;
  mpich | unknown) ;;
esac
if [ -n "${CG_DRY_RUN:-}" ]; then
  echo horovodrun "${arguments[@]@Q}" "$@"
  exit 0
fi
exec horovodrun "${arguments[@]}" "$@"
