#!/usr/bin/env bash
# A TPU slice as VMs of Google Cloud: created by a queued resource, made again after preemption, until the run is done.
#
#   TPU=my-1b TYPE=v5litepod-256 ZONE=us-west4-a STORE=10.0.0.2:/runs \
#     launch/tpu_vm.sh [--dry-run] run configs/final_1b.py --mesh.replica 2
#
#   TPU        name of the queued resource and of the slice
#   TYPE       accelerator type, as the cloud spells it: v5litepod-256, v5p-128, v6e-256
#   ZONE       zone, and PROJECT if it is not gcloud's own
#   STORE      an NFS export (Filestore) that all workers mount at /mnt/runs: the working directory is on it
#   VERSION    runtime version (default: v2-alpha-tpuv5-lite, v2-alpha-tpuv5 or v2-alpha-tpuv6e, by TYPE)
#   PRICING    spot (default), reserved or on-demand
#   REF        commit or tag that is installed (default: the commit that is checked out here)
#   SOURCE     where the workers clone from (default: this repository's `origin`)
#   POLL       seconds between looks at the state of the request (default: 30)
#
# It runs on your machine, which may sleep: the slice goes on, and the same command takes it up again.
set -euo pipefail

dry_run=''
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
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
ref=${REF:-$(git rev-parse HEAD)}

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

state() { # of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; empty: there is none
  gcloud compute tpus queued-resources describe "$TPU" "${where[@]}" --format 'value(state.state)' 2>/dev/null || true
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

until_active() {
  while true; do
    case $(state) in
      ACTIVE) return ;;
      '') create ;;
      SUSPENDED | FAILED) # preempted, or never given: a new request takes its place
        delete
        create
        ;;
      *) echo "tpu_vm.sh: $(date +%T) $TPU is $(state)" >&2 ;;
    esac
    sleep "${POLL:-30}"
  done
}

install="sudo mkdir -p /mnt/runs && (mountpoint -q /mnt/runs || sudo mount -o hard $STORE /mnt/runs) \
&& (test -d jaxprune || git clone -q $(printf %q "$source_url") jaxprune) && cd jaxprune && git fetch -q \
&& git checkout -q $ref && (test -d .venv || python3 -m venv .venv) && .venv/bin/pip install -q -e '.[tpu]'"
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

while true; do
  until_active
  status=0
  { on_all "$install" && on_all "$start" && on_first "$follow"; } || status=$?
  if ((status == 0)); then
    delete
    exit 0
  fi
  if [[ $(state) == ACTIVE ]] && ((status != 143 && status != 255)); then # 143: told to stop, 255: the connection broke
    echo "tpu_vm.sh: the run ended with $status; mend it and start again (the slice is kept: it costs)" >&2
    exit "$status"
  fi
  echo "tpu_vm.sh: the slice or the connection is gone; looking again" >&2
  sleep "${POLL:-30}"
done
