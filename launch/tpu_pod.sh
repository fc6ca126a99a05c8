#!/usr/bin/env bash
# A Cloud TPU slice from creation to deletion, with gcloud.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: launch/tpu_pod.sh [--dry_run] COMMAND --name NAME --zone ZONE [options] [-- ARGUMENTS]

  create    makes the slice; --type v5litepod-256, --version v2-alpha-tpuv5-lite,
            --spot for spot capacity, --queued to wait in the queue until there is room
  status    what state the slice, or its place in the queue, is in
  install   copies this checkout to every host and installs it there;
            --bucket B mounts a bucket of Cloud Storage as ~/bucket
  run       starts `ccl_jax.main` on every host, with the ARGUMENTS after `--`; it goes on
            when the connection ends, and begins again after maintenance
  tail      shows the log of the first host as it grows; --all for the last lines of every host
  stop      tells the run to save and end
  delete    deletes the slice and its place in the queue

  --project P    instead of gcloud's own
  --dry_run      prints the commands only

The workdir of `run` must be a folder that all hosts see. Paths start in the checkout, so that the
mounted bucket is ../bucket.

Example:
  pod="--name ccl --zone us-west4-a"
  launch/tpu_pod.sh create $pod --type v5litepod-256 --spot --queued
  launch/tpu_pod.sh install $pod --bucket BUCKET
  launch/tpu_pod.sh run $pod -- --config configs/siglip_b16.py --workdir ../bucket/run
  launch/tpu_pod.sh tail $pod
  launch/tpu_pod.sh delete $pod
TXT
}

fail() {
  echo "launch/tpu_pod.sh: $*" >&2
  exit 2
}

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  usage
  [[ $# -gt 0 ]] && exit 0 || exit 2
fi

dry_run='' command='' name='' zone='' project='' type='' bucket='' spot='' queued='' all=''
version=v2-alpha-tpuv5-lite
arguments=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --dry_run) dry_run=1 ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --all) all=1 ;;
    --name | --zone | --project | --type | --version | --bucket)
      [[ $# -ge 2 && $2 != --* ]] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    -*) fail "no option $1; see --help" ;;
    *)
      [[ -z $command ]] || fail "two commands, $command and $1; give arguments of the run after --"
      command=$1
      ;;
  esac
  shift
done
[[ -n $name && -n $zone ]] || fail "give --name and --zone"

execute() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

where=(--zone "$zone")
[[ -n $project ]] && where+=(--project "$project")
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)

on_hosts() { # WORKER COMMAND
  execute "${tpu[@]}" ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

case $command in
  create)
    [[ -n $type ]] || fail "create needs --type, as in v5litepod-8, v5p-512, v6e-256"
    options=(--accelerator-type="$type")
    [[ -n $spot ]] && options+=(--spot)
    if [[ -n $queued ]]; then
      execute "${queue[@]}" create "$name" --node-id="$name" "${where[@]}" "${options[@]}" \
        --runtime-version="$version"
    else
      execute "${tpu[@]}" create "$name" "${where[@]}" "${options[@]}" --version="$version"
    fi
    ;;
  status)
    if [[ -n $queued ]]; then
      execute "${queue[@]}" describe "$name" "${where[@]}" --format='value(state.state)'
    else
      execute "${tpu[@]}" describe "$name" "${where[@]}" --format='value(state,health)'
    fi
    ;;
  install)
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    archive=$(mktemp -u).tar.gz
    # What git knows of, with changes that are not committed: the run is of this very tree.
    execute bash -c "cd $(printf %q "$root") && git ls-files -z | tar -czf $archive --null -T -"
    execute "${tpu[@]}" scp "$archive" "$name:ccl_jax.tar.gz" "${where[@]}" --worker=all
    on_hosts all 'mkdir -p ccl_jax && tar -xzf ccl_jax.tar.gz -C ccl_jax && python3 -m venv ccl_venv && ccl_venv/bin/pip install -q -e "./ccl_jax[train,tpu]"'
    execute rm -f "$archive"
    if [[ -n $bucket ]]; then
      on_hosts all "command -v gcsfuse > /dev/null || { echo 'install gcsfuse in the image of the slice' >&2; exit 1; }; mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs $(printf %q "$bucket") bucket; }"
    fi
    ;;
  run)
    ((${#arguments[@]})) || fail "run needs the arguments of ccl_jax.main after --"
    line=$(printf '%q ' "${arguments[@]}")
    # The log is kept over restarts.
    on_hosts all "cd ccl_jax && PATH=\$HOME/ccl_venv/bin:\$PATH setsid -f launch/supervise.sh $line>> ../ccl_jax.log 2>&1 < /dev/null"
    ;;
  tail)
    if [[ -n $all ]]; then
      on_hosts all 'tail -n 5 ccl_jax.log'
    else
      on_hosts 0 'tail -n 50 -F ccl_jax.log'
    fi
    ;;
  stop) on_hosts all 'pkill -TERM -f launch/supervise.sh' ;;
  delete)
    if [[ -n $queued ]]; then
      execute "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
    else
      execute "${tpu[@]}" delete "$name" "${where[@]}" --quiet
    fi
    ;;
  '') fail "give a command: create, status, install, run, tail, stop or delete" ;;
  *) fail "no command $command: create, status, install, run, tail, stop or delete" ;;
esac
