#!/usr/bin/env bash
# shellcheck disable=SC2016 # the help shows variables
help='Run one command on GPUs of a SLURM cluster: one process for each GPU of each node.

    launch/slurm.sh --nodes=2 --gpus=8 --partition=gpu --time=24:00:00 -- \
        mgie train --config configs/mgie_7b.py --workdir /shared/out --config.init=/shared/mgie_7b_jax \
        --config.data=/shared/datasets/ipr2pr-expressive
    launch/slurm.sh --nodes=1 --gpus=4 --dry-run -- mgie train ...

  --nodes=N      how many (default: 1)
  --gpus=N       GPUs of each node (default: 8); ask for whole nodes
  --venv=DIR     where the package is installed, seen by all nodes (default: .venv-cuda in this checkout)
  --extras=LIST  extras of the package to install (default: cuda)
  --dry-run      print what would be run, and run nothing
  --OPTION=VALUE any other option goes to sbatch

Installs on this machine, whose network has packages; then submits itself. Two minutes before the time limit, or when
it is preempted, the command is sent SIGTERM; it saves, ends with exit code 75, and is queued again, to go on from
there. Any other exit code ends the job. WORKDIR must be on a file system of all nodes. The output: slurm-JOB.out.'
set -euo pipefail

fail() {
  echo "slurm.sh: error: $1 (see: launch/slurm.sh --help)" >&2
  exit 2
}

# In the job, on its first node: sbatch runs a copy of this file.
if [ "${1-}" = --job ]; then
  export PATH="$2/bin:$PATH"
  shift 2
  trap : TERM # a preempted job is told as a whole; the end of srun decides
  # SLURM does not hand on to srun what sbatch was told of CPUs.
  [ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  # JAX reads SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID and SLURM_LOCALID (SlurmCluster in
  # jax/_src/clusters/slurm_cluster.py): its coordinator is on the first node, and process SLURM_LOCALID of a node takes
  # the GPU of that number, so each must see all GPUs of its node. When one process fails JAX ends the others; SLURM,
  # which some clusters have kill them at once, must leave them the time to save.
  code=0
  srun --kill-on-bad-exit=0 --wait=300 -- "$@" || code=$?
  # Cancelled by its user, the job is told to leave as well, but is no longer RUNNING.
  if [ "$code" = 75 ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
    echo "slurm.sh: saved; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nodes=1 gpus=8 venv=$root/.venv-cuda extras=cuda dry_run='' options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    -h | --help) printf '%s\n' "$help" && exit ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --venv=*) venv=${1#*=} ;;
    --extras=*) extras=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --ntasks* | --gpus-per-* | --gpu-bind=* | --gres=*) fail "$1: processes and GPUs are for --nodes and --gpus to say" ;;
    --*) options+=("$1") ;;
    *) fail "$1: options are written --OPTION=VALUE" ;;
  esac
  shift
done
[ "${1-}" = -- ] && shift
[ $# -gt 0 ] || fail 'give the command after --, as in: -- mgie train --config configs/mgie_7b.py ...'
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ ]] || fail "--nodes=$nodes --gpus=$gpus: numbers from 1 up"
[ -n "$dry_run" ] || command -v sbatch >/dev/null || fail 'sbatch: there is no such command; run this on a login node'
command=("$@")
# By this the processes join each other; each would do it all alone.
if [ "$1 ${2-}" = 'mgie train' ] && [[ " $* " != *' --config.distributed'* ]]; then
  command+=(--config.distributed=True)
elif [ "$1 ${2-}" = 'mgie prepare' ] && [[ " $* " != *' --distributed '* ]]; then
  command+=(--distributed)
fi

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
if [ -n "$dry_run" ] || [ ! "$venv/.installed" -nt "$root/setup.py" ]; then
  run python3 -m venv "$venv"
  run "$venv/bin/python" -m pip install --quiet --editable "${root}[$extras]"
  run touch "$venv/.installed"
fi
# Options of the user come last and win.
run sbatch --job-name=mgie --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --exclusive \
  --requeue --signal=TERM@120 --open-mode=append ${options[@]+"${options[@]}"} \
  "$root/launch/slurm.sh" --job "$venv" "${command[@]}"
