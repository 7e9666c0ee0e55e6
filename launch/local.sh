#!/usr/bin/env bash
# One machine: rehearses a run of many devices and processes on the CPU, or starts it on the machine's accelerators.
#
#   launch/local.sh [--dry-run] [--devices N] [--processes P] COMMAND CONFIG [--SETTING VALUE ...]
#
#   --devices N     N fake CPU devices in each process (default: what is there; then P must be 1)
#   --processes P   P processes that find each other on loopback (default: 1)
#   --dry-run       print the exact commands, and run nothing
#
#   launch/local.sh --devices 4 --processes 2 run tests/tiny.py --corpus.sources texts --workdir runs/rehearsal
#
# Messages of process p > 0 go to its own file, LOGS/process-p.log (LOGS: a folder, default: launch-logs). When process 0 has
# failed, the others are stopped after GRACE seconds (default: 30).
set -euo pipefail

dry_run='' devices='' processes=1
while (($#)); do
  case $1 in
    --dry-run) dry_run=1; shift ;;
    --devices) devices=${2:?--devices needs a number}; shift 2 ;;
    --processes) processes=${2:?--processes needs a number}; shift 2 ;;
    -*) echo "local.sh: there is no option $1 before the command" >&2; exit 2 ;;
    *) break ;;
  esac
done
for word in "$@"; do
  if [[ $word == --dry-run || $word == --devices ]]; then
    echo "local.sh: $word stands before the command" >&2
    exit 2
  fi
done
if (($# < 2)); then
  echo 'local.sh: give a command and a config, such as: run configs/quickstart.py' >&2
  exit 2
fi
if ((processes > 1)) && [[ -z $devices ]]; then
  echo 'local.sh: several processes cannot share the accelerators of one machine here: add --devices N' >&2
  exit 2
fi

logs=${LOGS:-launch-logs}
port=${PORT:-$((20000 + RANDOM % 20000))}
environment=() # empty arrays are written so that bash before 4.4 (macOS) takes them
if [[ -n $devices ]]; then
  # Fake devices: XLA cuts the CPU into N, whose collectives and layouts are those of N chips.
  environment=(env JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=$devices")
fi

command_of() { # process number -> the array `command`
  command=(${environment[@]+"${environment[@]}"} jaxprune "${arguments[@]}")
  if ((processes > 1)); then
    command+=(--processes "$processes" --process "$1" --coordinator "127.0.0.1:$port")
  fi
}

arguments=("$@")
if [[ -n $dry_run ]]; then
  for ((p = 0; p < processes; p++)); do
    command_of "$p"
    printf '%q ' "${command[@]}"
    echo
  done
  exit 0
fi

others=()
if ((processes > 1)); then
  mkdir -p "$logs"
  for ((p = 1; p < processes; p++)); do
    command_of "$p"
    "${command[@]}" >"$logs/process-$p.log" 2>&1 &
    others+=($!)
  done
fi
# SIGTERM to this script reaches all of them, which save and stop after the same step. Ctrl-C reaches them by itself, as
# they are in the terminal's foreground; this script only waits for what they make of it.
command_of 0
"${command[@]}" &
first=$!
trap 'kill -TERM "$first" ${others[@]+"${others[@]}"} 2>/dev/null || true' TERM
trap : INT
status=0
wait "$first" || status=$?
while kill -0 "$first" 2>/dev/null; do # the wait was interrupted by the trap
  status=0
  wait "$first" || status=$?
done
if ((status != 0)); then # others that have not met process 0 would wait for it: they are told, after GRACE seconds
  for ((turn = 0; turn < 10 * ${GRACE:-30}; turn++)); do
    kill -0 ${others[@]+"${others[@]}"} 2>/dev/null || break
    sleep 0.1
  done
  kill -TERM ${others[@]+"${others[@]}"} 2>/dev/null || true
fi
for other in ${others[@]+"${others[@]}"}; do
  while kill -0 "$other" 2>/dev/null; do wait "$other" || true; done # process 0 has said what was wrong
done
exit "$status"
