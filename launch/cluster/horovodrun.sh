#!/usr/bin/env bash
# The benchmarks on several machines, started by horovodrun (over MPI).
#
#   HOSTFILE=hosts NODES="1 2 4" PER_NODE=4 bash launch/cluster/horovodrun.sh NAME
#
# Writes benchmarks/results/NAME/*.json; see hosts.sh and benchmarks/run_grid.sh for
# the settings. The same path on every machine, as on a shared file system.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. launch/env.sh
. launch/cluster/hosts.sh
cg_begin launch/cluster/horovodrun.sh "$@"
shift 2
arguments=(-np "$CG_N")
[ -z "$CG_HOSTS" ] || arguments+=(-H "$CG_HOSTS")
exec bash launch/horovodrun.sh "${arguments[@]}" "$CG_PYTHON" "$@"
