#!/usr/bin/env bash
# Trains and evaluates on this machine, with whatever devices JAX finds here.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: launch/local.sh [--devices N] --config FILE[:ARG] --workdir DIR [--config.FIELD VALUE ...]

Runs `python -m ccl_jax.main` with all further arguments as they are.

  --devices N   pretend that the CPU is N devices, to try data parallelism without any

The same command again resumes. Example, from the root of the checkout:
  launch/local.sh --config configs/quickstart.py:smoke --workdir "$HOME/ccl_smoke"
TXT
}

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  usage
  [[ $# -gt 0 ]] && exit 0 || exit 2
fi

if [[ $1 == --devices || $1 == --devices=* ]]; then
  if [[ $1 == --devices=* ]]; then
    count=${1#*=}
    shift
  else
    count=${2:-}
    shift $(($# > 1 ? 2 : 1))
  fi
  if [[ ! $count =~ ^[1-9][0-9]*$ ]]; then
    echo "launch/local.sh: --devices takes a positive number, got '$count'" >&2
    exit 2
  fi
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$count"
fi

exec python -m ccl_jax.main "$@"
