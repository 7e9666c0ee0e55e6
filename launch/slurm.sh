#!/usr/bin/env bash
# SLURM: one process per GPU (or per node) on any number of nodes, requeued until the run is done.
#
#   sbatch --nodes 4 launch/slurm.sh run configs/final_1b.py --corpus.sources /shared/corpus \
#     --workdir /shared/runs/1b --mesh.replica 4
#   bash launch/slurm.sh --dry-run run configs/final_1b.py --workdir /shared/runs/1b    # prints the command only
#
#   TASKS=gpu    one process for each GPU (default; submit with --ntasks-per-node = GPUs of a node)
#   TASKS=node   one process for each node, with all of its GPUs (submit with --ntasks-per-node 1)
#   RESTARTS=N   how often it is requeued after a process was killed or lost, at most (default: 20)
#   VENV=DIR     the Python environment of all nodes (default: .venv of the folder you submit from)
#
# The working directory must be on a file system that all nodes share.
#SBATCH --job-name=jaxprune
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
# All of a node's memory, of which some sites give a part by default.
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=jaxprune-%j.log
#SBATCH --open-mode=append
# SIGTERM to every process five minutes before the time limit: they save, and end with 143.
#SBATCH --signal=TERM@300
# Preempted jobs and those of failed nodes come back by themselves.
#SBATCH --requeue
set -euo pipefail

dry_run=${DRY_RUN:-}
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
if [[ ${1:-} == -* ]]; then
  echo "slurm.sh: there is no option $1 before the command" >&2
  exit 2
fi
for word in "$@"; do
  case $word in
    --dry-run) echo 'slurm.sh: --dry-run stands before the command' >&2; exit 2 ;;
    --distributed) echo 'slurm.sh: leave --distributed out: it is added' >&2; exit 2 ;;
  esac
done
if (($# < 2)); then
  echo 'slurm.sh: give a command and a config, such as: run configs/final_1b.py --workdir DIR' >&2
  exit 2
fi

# Compiler flags for NVIDIA GPUs:
#   latency hiding scheduler   gathers the next layer's weights while this one computes
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
# What is compiled once is read by all nodes, and again after a requeue.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/jaxprune/xla}"

submitted_from=${SLURM_SUBMIT_DIR:-$PWD}
venv=${VENV:-$submitted_from/.venv}
case ${TASKS:-gpu} in
  gpu)
    step=(srun --kill-on-bad-exit=0 "$venv/bin/jaxprune" "$@" --distributed)
    ;;
  node)
    # JAX takes one GPU for each task of SLURM, so that here the places are given one by one.
    host=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null | head -n 1 || true)
    port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
    # The variables are those of each task, not of this script.
    # shellcheck disable=SC2016
    each='exec "$0" "$@" --processes "$SLURM_NTASKS" --process "$SLURM_PROCID" --coordinator "$COORDINATOR"'
    step=(env "COORDINATOR=${host:-FIRST_NODE}:$port" srun --kill-on-bad-exit=0 bash -c "$each" "$venv/bin/jaxprune" "$@")
    ;;
  *)
    echo "slurm.sh: TASKS is $TASKS: set gpu or node" >&2
    exit 2
    ;;
esac

if [[ -n $dry_run ]]; then
  if [[ ${TASKS:-gpu} == node && -z $host ]]; then
    echo 'slurm.sh: FIRST_NODE stands for the first node of the job, which is known when it runs' >&2
  fi
  printf '%q ' env "XLA_FLAGS=$XLA_FLAGS" \
    "JAX_COMPILATION_CACHE_DIR=$JAX_COMPILATION_CACHE_DIR" "${step[@]}"
  echo
  exit 0
fi

status=0
"${step[@]}" || status=$?
# 143: saved after SIGTERM. 75: a process is missing or gone, as where it was killed (137) or crashed (139). The same
# command continues. 1 and 2 are errors that come again.
case $status in
  143) again='saved before the time limit' ;;
  75 | 137 | 139)
    again="a process was lost (status $status)"
    if ((${SLURM_RESTART_COUNT:-0} >= ${RESTARTS:-20})); then
      echo "slurm.sh: $again, after ${SLURM_RESTART_COUNT:-0} restarts; set RESTARTS to go on" >&2
      exit "$status"
    fi
    ;;
  *) exit "$status" ;;
esac
echo "slurm.sh: $again; requeued"
scontrol requeue "$SLURM_JOB_ID"
exit "$status"
