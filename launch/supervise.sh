#!/usr/bin/env bash
# Runs `python -m ccl_jax.main` and begins again when it ends by being told to stop (SIGTERM, as
# on maintenance or pre-emption), and a few times when it dies by a signal, as all processes do
# when another host is gone. Each time it continues at the last checkpoint.
set -uo pipefail

# Exit code of a run that saved and stopped because it was told to (ccl_jax/training/stopping.py),
# and of one that was told before it could listen.
readonly STOPPED=75 TERMINATED=143
# Deaths in a row, each within so many seconds of a start, after which it is left at that.
readonly DEATHS=3 SOON=600

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  echo "usage: launch/supervise.sh ARGUMENTS OF ccl_jax.main"
  [[ $# -gt 0 ]] && exit 0 || exit 2
fi

child=
ended=
deaths=0
# The same signal to this script ends both, without a new beginning.
trap 'ended=1; [[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT

while :; do
  begun=$SECONDS
  python -m ccl_jax.main "$@" &
  child=$!
  wait "$child"
  code=$?
  # A trap interrupts `wait`; the child may still be saving.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  ((SECONDS - begun < SOON)) || deaths=0
  if ((code == STOPPED || code == TERMINATED)); then
    why="told to stop"
  elif ((code > 128 && deaths < DEATHS)); then
    deaths=$((deaths + 1))
    why="died by signal $((code - 128))"
  else
    exit "$code"
  fi
  [[ -z $ended ]] || exit "$code"
  echo "launch/supervise.sh: $why; beginning again at the last checkpoint" >&2
  sleep "${SUPERVISE_PAUSE:-5}"
done
