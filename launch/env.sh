# shellcheck shell=bash
# The other scripts source this file. It finds Python and MPI, and knows what arguments
# each MPI wants.
#
#   CG_ROOT, CG_PYTHON     the repository, and the Python to use
#   CG_MPI                 openmpi4, openmpi5, mpich, unknown or none (cg_find_mpi)
#   CG_MPIRUN_ARGS         arguments for this MPI's mpirun (cg_mpirun_args "$@")
#
# Anything set by the user beforehand, in the environment or as an argument, stays.
CG_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CG_PYTHON=${PYTHON:-$CG_ROOT/.venv/bin/python}
[ -x "$CG_PYTHON" ] || CG_PYTHON=$(command -v "${PYTHON:-python3}" || true)
if [ -z "$CG_PYTHON" ]; then
  echo "codedgrad: no Python found; install Python >= 3.10, then launch/install.sh" >&2
  exit 1
fi
# The environment's own mpirun, mpicc and horovodrun come before the system's.
PATH=$(dirname "$CG_PYTHON"):$PATH
export PATH
# A machine has several workers, so each one's tensor operations use one core, unless
# the user says otherwise.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "$(id -u)" = 0 ]; then # as in containers; Open MPI refuses root otherwise
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

cg_find_mpi() {
  local version
  CG_MPI=none
  command -v mpirun >/dev/null || return 0
  version=$(mpirun --version 2>&1 | head -n 3)
  case $version in
    *"Open MPI) 5"* | *"Open MPI) 6"*) CG_MPI=openmpi5 ;;
    *"Open MPI) "* | *OpenRTE*) CG_MPI=openmpi4 ;;
    *HYDRA* | *MPICH* | *Intel*) CG_MPI=mpich ;;
    *) CG_MPI=unknown ;;
  esac
}

cg_need_mpi() {
  cg_find_mpi
  [ "$CG_MPI" != none ] && return 0
  echo "codedgrad: no mpirun found; bash launch/install.sh brings one" >&2
  exit 1
}

# Sets CG_PART to the arguments before the program, which are those of mpirun itself.
cg_launcher_part() {
  CG_PART=
  local word
  for word in "$@"; do
    case $word in -*) ;; *) ! command -v "$word" >/dev/null || break ;; esac
    CG_PART+=" $word"
  done
  CG_PART+=" "
}

# Succeeds if the job stays on this machine: no scheduler is there, no host is named.
cg_one_machine() {
  [ -z "${SLURM_JOB_ID:-}${PBS_NODEFILE:-}${LSB_HOSTS:-}${PE_HOSTFILE:-}" ] || return 1
  cg_launcher_part "$@"
  case $CG_PART in
    *" -H "* | *" -host"* | *" --host"* | *hostfile* | *machinefile* | *" -f "*)
      return 1 ;;
  esac
}

# Tells Open MPI that the job stays on one machine. It would otherwise look for fast
# networks first, which takes a second per start, and warn where there is none.
cg_quiet_network() {
  cg_one_machine "$@" || return 0
  case $CG_MPI in
    openmpi5) export OMPI_MCA_btl=${OMPI_MCA_btl:-self,sm,tcp} ;;
    openmpi4)
      export OMPI_MCA_btl=${OMPI_MCA_btl:-self,vader,tcp}
      # Containers without ptrace forbid one process to read another's memory.
      export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
      ;;
    *) return 0 ;;
  esac
  export OMPI_MCA_pml=${OMPI_MCA_pml:-ob1}
  # With more workers than cores a waiting worker must not keep a core busy.
  export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
}

# Sets CG_MPIRUN_ARGS for the mpirun arguments given.
cg_mpirun_args() {
  cg_need_mpi
  cg_quiet_network "$@"
  CG_MPIRUN_ARGS=()
  case $CG_MPI in openmpi4 | openmpi5) ;; *) return 0 ;; esac
  # A worker has two threads, its Python and its engine, which need two cores.
  cg_launcher_part "$@"
  case $CG_PART in
    *bind-to*) ;;
    *) CG_MPIRUN_ARGS+=(--bind-to none) ;;
  esac
  if cg_one_machine "$@"; then # more workers than cores are welcome here
    case "$CG_MPI$CG_PART" in
      *oversubscribe* | *OVERSUBSCRIBE* | *--map-by*) ;;
      openmpi5*) CG_MPIRUN_ARGS+=(--map-by :OVERSUBSCRIBE) ;;
      openmpi4*) CG_MPIRUN_ARGS+=(--oversubscribe) ;;
    esac
  else # mpirun passes variables to other machines only if it is told to
    local name
    for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS CODEDGRAD_FAULTS; do
      [ -z "${!name:-}" ] || CG_MPIRUN_ARGS+=(-x "$name")
    done
  fi
}
