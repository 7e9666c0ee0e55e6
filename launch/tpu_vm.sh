#!/usr/bin/env bash
# A TPU slice as VMs of Google Cloud: created by a queued resource, made again after preemption, until the run is done.
#
#   TPU=my-1b TYPE=v5litepod-256 ZONE=us-west4-a STORE=10.0.0.2:/runs \
#     launch/tpu_vm.sh [--dry-run] run configs/final_1b.py --corpus.sources gs://BUCKET/corpus --mesh.replica 2
#
#   TPU        name of the queued resource and of the slice
#   TYPE       accelerator type, as the cloud spells it: v5litepod-256, v5p-128, v6e-256
#   ZONE       zone, and PROJECT if it is not gcloud's own
#   STORE      an NFS export (Filestore) that all workers mount at /mnt/runs: the working directory is on it
#   VERSION    runtime version (default: v2-alpha-tpuv5-lite, v2-alpha-tpuv5 or v2-alpha-tpuv6e, by TYPE)
#   PRICING    spot (default), reserved or on-demand
#   REF        commit or tag that is installed (default: the commit that is checked out here, which must be pushed)
#   SOURCE     where the workers clone from (default: this repository's `origin`)
#   RESTARTS   how often it starts again after a process was killed or lost, at most (default: 20)
#   POLL       seconds between looks at the state of the request (default: 30)
#
# It runs on your machine, which may sleep: the slice goes on, and the same command takes it up again.
set -euo pipefail

dry_run=''
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
if [[ ${1:-} == -* ]]; then
  echo "tpu_vm.sh: there is no option $1 before the command" >&2
  exit 2
fi
for word in "$@"; do
  case $word in
    --dry-run) echo 'tpu_vm.sh: --dry-run stands before the command' >&2; exit 2 ;;
    --workdir | --workdir=*) echo "tpu_vm.sh: leave --workdir out: it is /mnt/runs/${TPU:-TPU}, on STORE" >&2; exit 2 ;;
    --distributed) echo 'tpu_vm.sh: leave --distributed out: it is added' >&2; exit 2 ;;
  esac
done
if (($# < 2)); then
  echo 'tpu_vm.sh: give a command and a config, such as: run configs/final_1b.py' >&2
  exit 2
fi
: "${TPU:?name the slice, as TPU=my-run}" "${TYPE:?set TYPE, such as v5litepod-256}" "${ZONE:?set ZONE}"
: "${STORE:?set STORE, an NFS export such as 10.0.0.2:/runs}"
case $TYPE in
  v5litepod-*) usual=v2-alpha-tpuv5-lite ;;
  v5p-*) usual=v2-alpha-tpuv5 ;;
  v6e-*) usual=v2-alpha-tpuv6e ;;
  *) echo "tpu_vm.sh: TYPE is $TYPE: set v5litepod-N, v5p-N or v6e-N" >&2; exit 2 ;;
esac
case ${PRICING:-spot} in
  spot | reserved) pricing=("--${PRICING:-spot}") ;;
  on-demand) pricing=() ;;
  *) echo "tpu_vm.sh: PRICING is $PRICING: set spot, reserved or on-demand" >&2; exit 2 ;;
esac
where=(--zone "$ZONE")
if [[ -n ${PROJECT:-} ]]; then where+=(--project "$PROJECT"); fi
source_url=${SOURCE:-$(git remote get-url origin 2>/dev/null || true)}
: "${source_url:?set SOURCE: where the workers clone the project from}"
if [[ $source_url == [./~]* ]]; then
  echo "tpu_vm.sh: the workers cannot clone $source_url, which is on this machine: set SOURCE" >&2
  exit 2
fi
ref=${REF:-$(git rev-parse HEAD)}
if [[ -z ${REF:-} && -z $dry_run ]]; then # before anything is booked: what the workers would not get
  if ! git diff --quiet HEAD; then
    echo 'tpu_vm.sh: there are changes that are not committed, which the workers do not get: commit and push them, or set REF' >&2
    exit 2
  fi
  if [[ -z $(git branch --remotes --contains "$ref") ]]; then
    echo "tpu_vm.sh: commit $ref is on no remote branch: push it, or set REF" >&2
    exit 2
  fi
fi

# Compiler flags for TPUs, read by libtpu:
#   async collective fusion (all-gather, multiple steps)  gathers of the next layer's weights run beside the products
#   data parallel all-reduce for different-sized ops      sums of gradients start as soon as each is there
flags="--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
flags+=" --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true"
flags+=" --xla_enable_async_all_gather=true --xla_tpu_enable_data_parallel_all_reduce_opt=true"
flags+=" --xla_tpu_data_parallel_opt_different_sized_ops=true"

do_() { # runs a command, or prints it
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

state() { # of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; NONE: there is none; UNKNOWN: no answer
  local said
  if said=$(gcloud compute tpus queued-resources describe "$TPU" "${where[@]}" --format 'value(state.state)' 2>&1); then
    echo "${said##*$'\n'}"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo UNKNOWN
    echo "tpu_vm.sh: no answer on $TPU: $said" >&2
  fi
}

create() {
  do_ gcloud compute tpus queued-resources create "$TPU" "${where[@]}" --node-id "$TPU" \
    --accelerator-type "$TYPE" --runtime-version "${VERSION:-$usual}" ${pricing[@]+"${pricing[@]}"}
}

delete() {
  do_ gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force --quiet
}

on_all() { # a script for every worker
  do_ gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker all --command "$1"
}

on_first() { # a script for worker 0
  do_ gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker 0 --command "$1"
}

installed() { # on every worker. What is in the way of new machines, such as a lock of their own updates, goes by itself
  local failed
  for ((failed = 1; ; failed++)); do
    if on_all "$install"; then return; fi
    if [[ $(state) != ACTIVE ]]; then return 255; fi
    if ((failed == 5)); then
      echo 'tpu_vm.sh: the workers could not be set up, in five attempts' >&2
      return 1
    fi
    sleep "${POLL:-30}"
  done
}

answered='' # ever: a network that goes comes back, a project or login that never was does not
until_active() {
  local now refused=0 silent=0
  while true; do
    now=$(state)
    if [[ $now == UNKNOWN ]]; then
      silent=$((silent + 1))
      if ((silent == 3)) && [[ -z $answered ]]; then
        echo 'tpu_vm.sh: the cloud never answered; mend what it says and start again' >&2
        exit 1
      fi
    else
      answered=1
    fi
    case $now in
      ACTIVE) return ;;
      NONE) # one that was refused may have been accepted all the same: the next look tells
        if create; then refused=0; else refused=$((refused + 1)); fi
        if ((refused == 3)); then
          echo "tpu_vm.sh: the request was refused three times; mend what it says and start again" >&2
          exit 1
        fi
        ;;
      SUSPENDED | FAILED) delete || true ;; # preempted, or never given: a new request takes its place
      UNKNOWN) ;;
      *) echo "tpu_vm.sh: $(date +%T) $TPU is $now" >&2 ;;
    esac
    sleep "${POLL:-30}"
  done
}

# The images' own Python may be too old, and have no venv: uv brings one. A fresh export belongs to root.
install="(command -v mount.nfs >/dev/null || { sudo apt-get -qq update && sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common; }) \
&& sudo mkdir -p /mnt/runs && (mountpoint -q /mnt/runs || sudo mount -o hard $STORE /mnt/runs) \
&& sudo mkdir -p /mnt/runs/$TPU /mnt/runs/xla && sudo chmod 777 /mnt/runs/$TPU /mnt/runs/xla \
&& (test -d jaxprune || git clone -q $(printf %q "$source_url") jaxprune) && cd jaxprune && git fetch -q \
&& git checkout -q $ref && python3 -m pip install -q --user uv && export PATH=\"\$HOME/.local/bin:\$PATH\" \
&& (test -d .venv || uv venv -q --python 3.12 .venv) && uv pip install -q -e '.[tpu]'"
# All workers run the same command, in a session of its own that this connection does not end.
# What is compiled once is read by all workers, and again after a preemption.
job="JAX_COMPILATION_CACHE_DIR=/mnt/runs/xla LIBTPU_INIT_ARGS='$flags' .venv/bin/jaxprune $(printf '%q ' "$@")--distributed --workdir /mnt/runs/$TPU; \
echo \$? > run.status"
start="cd jaxprune && { kill -0 \$(cat run.pid 2>/dev/null) 2>/dev/null || { rm -f run.status; \
setsid nohup bash -c $(printf %q "$job") >> run.log 2>&1 < /dev/null & echo \$! > run.pid; }; }"
# Process 0 writes the log for all: it is shown until it ends, and how it ended is the status.
follow="cd jaxprune && tail -n 20 -F run.log --pid \$(cat run.pid); exit \$(cat run.status)"

if [[ -n $dry_run ]]; then
  create
  on_all "$install"
  on_all "$start"
  on_first "$follow"
  delete
  exit 0
fi

restarts=0
while true; do
  until_active
  status=0
  { installed && on_all "$start" && on_first "$follow"; } || status=$?
  if ((status == 0)); then
    delete
    exit 0
  fi
  # 143: told to stop. 255: the connection broke. 75, 137, 139: a process is gone, was killed or crashed. The same command
  # continues; others are errors that come again, unless they came because the slice went.
  if [[ $(state) == ACTIVE ]]; then
    case $status in
      143 | 255) ;;
      75 | 137 | 139)
        restarts=$((restarts + 1))
        if ((restarts > ${RESTARTS:-20})); then
          echo "tpu_vm.sh: a process was lost after ${RESTARTS:-20} restarts; see why (the slice is kept: it costs)" >&2
          exit "$status"
        fi
        ;;
      *)
        echo "tpu_vm.sh: the run ended with $status; mend it and start again (the slice is kept: it costs)" >&2
        exit "$status"
        ;;
    esac
  fi
  echo "tpu_vm.sh: the run ended with $status, or the connection did; looking again" >&2
  sleep "${POLL:-30}"
done
