#!/usr/bin/env bash
# Trains and evaluates on this machine: with the devices JAX finds, or as several processes.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: launch/local.sh [N] [--devices D] [--dry_run] --config FILE[:ARG] --workdir DIR [...]

Runs `python -m ccl_jax.main` with all further arguments as they are.

  N             as N processes that train together over the loopback network, as hosts of a
                pod do; one by default
  --devices D   pretend that the CPU of each process is D devices, to try sharding without any
  --dry_run     print the commands only

The same command again resumes. If a process dies, the others are ended. Examples:
  launch/local.sh --config configs/quickstart.py:smoke --workdir "$HOME/ccl_smoke"
  launch/local.sh 2 --config configs/quickstart.py:smoke --workdir "$HOME/ccl_smoke_2"
TXT
}

fail() {
  echo "launch/local.sh: $*" >&2
  exit 2
}

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  usage
  [[ $# -gt 0 ]] && exit 0 || exit 2
fi

processes=1
dry_run=
if [[ $1 =~ ^[0-9]+$ ]]; then
  processes=$1
  [[ $processes =~ ^[1-9][0-9]*$ ]] || fail "the number of processes is at least 1, got '$1'"
  shift
fi
while [[ $# -gt 0 ]]; do
  case $1 in
    --devices | --devices=*)
      if [[ $1 == --devices=* ]]; then
        count=${1#*=}
        shift
      else
        count=${2:-}
        shift $(($# > 1 ? 2 : 1))
      fi
      [[ $count =~ ^[1-9][0-9]*$ ]] || fail "--devices takes a positive number, got '$count'"
      export JAX_PLATFORMS=cpu
      export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$count"
      ;;
    --dry_run)
      dry_run=1
      shift
      ;;
    *) break ;;
  esac
done

# Temporaries on huge pages: large steps on a CPU were 1.15 times as fast.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

command=(python -m ccl_jax.main "$@")
if ((processes == 1)); then
  [[ -n $dry_run ]] && { printf '%q ' "${command[@]}" && echo && exit 0; }
  exec "${command[@]}"
fi

port=${CCL_JAX_PORT:-}
if [[ -z $port ]]; then
  port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi
pids=()
end_all() {
  # After the first ones' end; those that save on SIGTERM are given time to.
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
}
trap end_all TERM INT

for ((i = 0; i < processes; i++)); do
  one=("${command[@]}" --coordinator "127.0.0.1:$port" --num_processes "$processes" --process_id "$i")
  if [[ -n $dry_run ]]; then
    printf '%q ' "${one[@]}" && echo
  elif ((i == 0)); then
    "${one[@]}" &
    pids+=($!)
  else
    # What the other processes say is marked; results and progress come from the first.
    "${one[@]}" > >(sed "s/^/[$i] /") 2> >(sed "s/^/[$i] /" >&2) &
    pids+=($!)
  fi
done

result=0
left=("${pids[@]}")
while ((${#left[@]})); do
  code=0
  wait -n -p ended "${left[@]}" || code=$?
  others=()
  for pid in "${left[@]}"; do [[ $pid == "$ended" ]] || others+=("$pid"); done
  left=("${others[@]}")
  # The first that fails says what the run ends with; the others only notice that it is gone.
  if ((code != 0 && result == 0)); then
    result=$code
    ((${#left[@]})) && echo "launch/local.sh: a process ended with code $code; ending the others" >&2
    end_all
  fi
done
exit "$result"
