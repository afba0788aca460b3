#!/usr/bin/env bash
#SBATCH --job-name=codedgrad
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
# This is a Slurm job; change the lines above, or give them to sbatch.
#
#   sbatch launch/slurm.sh launch/train.py --task text
#   sbatch --nodes=8 launch/slurm.sh my_script.py
#
# A worker has two cores: one for its Python, one for its engine and torch's threads.
# Where Slurm was built with PMIx (`srun --mpi=list`) srun starts the workers; elsewhere
# mpirun does it, inside the allocation. MPI must be the cluster's own, and the engine
# built against it: module load openmpi; PYTHON=... bash launch/install.sh
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
# Slurm copies this script elsewhere, so env.sh is not found beside it.
. launch/env.sh
if [ $# = 0 ]; then
  sed -n '8,17s/^# \{0,1\}//p' launch/slurm.sh >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "codedgrad: not inside a Slurm job; run: sbatch launch/slurm.sh $*" >&2
  exit 1
fi
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
if srun --mpi=list 2>&1 | grep -q pmix; then
  exec srun --mpi=pmix --cpu-bind=none "$CG_PYTHON" "$@"
fi
exec bash launch/mpirun.sh -n "$SLURM_NTASKS" "$CG_PYTHON" "$@"
