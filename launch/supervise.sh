#!/usr/bin/env bash
# Runs `python -m ccl_jax.main` and begins again as long as it ends by being told to stop
# (SIGTERM, as on maintenance or pre-emption): it has saved then, and continues where it was.
set -uo pipefail

# Exit code of a run that saved and stopped because it was told to (ccl_jax/training/stopping.py).
readonly STOPPED=75

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  echo "usage: launch/supervise.sh ARGUMENTS OF ccl_jax.main"
  [[ $# -gt 0 ]] && exit 0 || exit 2
fi

child=
ended=
# The same signal to this script ends both, without a new beginning.
trap 'ended=1; [[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT

while :; do
  python -m ccl_jax.main "$@" &
  child=$!
  wait "$child"
  code=$?
  # A trap interrupts `wait`; the child may still be saving.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  if ((code != STOPPED)) || [[ -n $ended ]]; then
    exit "$code"
  fi
  echo "launch/supervise.sh: told to stop and saved; beginning again" >&2
  sleep "${SUPERVISE_PAUSE:-5}"
done
