#!/usr/bin/env bash
# Runs the benchmarks on several machines; mpirun (Open MPI or MPICH) starts the workers.
#
#   HOSTFILE=hosts NODES="1 2 4" PER_NODE=4 bash launch/cluster/mpirun.sh NAME
#   NODES=1 PER_NODE=2 DEVICE=cpu TOY=1 bash launch/cluster/mpirun.sh NAME scaling
#
# It writes benchmarks/results/NAME/*.json; hosts.sh and benchmarks/run_grid.sh list the
# settings. The repository has the same path on every machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. launch/env.sh
. launch/cluster/hosts.sh
cg_begin launch/cluster/mpirun.sh "$@"
shift 2
arguments=(-n "$CG_N")
if [ -n "$CG_HOSTS" ]; then
  cg_need_mpi
  case $CG_MPI in
    mpich) arguments+=(-hosts "$CG_HOSTS") ;;
    *) arguments+=(--host "$CG_HOSTS") ;;
  esac
fi
exec bash launch/mpirun.sh "${arguments[@]}" "$CG_PYTHON" "$@"
