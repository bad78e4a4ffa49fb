#!/usr/bin/env bash
# What the programs beside this file ask of one worker of a pod, over ssh. All of it lives in ~/cpt_jax:
#   code/  the checkout      venv/  its packages      train.log, pid, exit_status  of the run      lock  held while the run lives
set -euo pipefail
cd "$(dirname "$0")/../../.."
worker=${HOSTNAME:-$(hostname)}

say() { echo "worker $worker: $*"; }

fail() {
  echo "error: worker $worker: $*" >&2
  exit 1
}

# The run and all its children hold a lock: the kernel lets go of it however they end, and no number of a process can be mistaken.
running() { ! flock --nonblock --shared lock true; }

install() { # REQUIREMENT [BUCKET FOLDER]
  if running; then fail 'a run is going on: launch/tpu/stop.py saves and ends it'; fi
  rm -rf code
  mv next code
  [ -x venv/bin/pip ] || make_venv
  venv/bin/python -m pip install --quiet --disable-pip-version-check --editable code "$1"
  if [ $# -eq 3 ]; then mount_bucket "$2" "$3"; fi
  say installed
}

# The images of Cloud TPU carry Python 3.10 (Ubuntu 22.04), which JAX no longer supports; uv brings the version that the tests run on.
make_venv() {
  if [ ! -x bin/uv ]; then
    curl -LsSf https://astral.sh/uv/0.13.9/install.sh -o uv-install.sh
    UV_UNMANAGED_INSTALL=$PWD/bin sh uv-install.sh
  fi
  bin/uv venv --quiet --clear --seed --python 3.11 venv
}

# Installed as cloud.google.com/storage/docs/cloud-storage-fuse/install says. A checkpoint is finished by renaming its folder, and every
# host must see at once what another one wrote: hence a rename limit, and no cached metadata.
mount_bucket() { # BUCKET FOLDER
  if ! command -v gcsfuse >/dev/null; then
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    curl -LsSf https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse
  fi
  if ! mountpoint -q "$2"; then
    mkdir -p "$2" 2>/dev/null || { sudo mkdir -p "$2" && sudo chown "$(id -u):$(id -g)" "$2"; }
    gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$2"
  fi
}

start() { # flags of launch/train.py
  exec 9>>lock
  flock --wait 0.5 9 || fail 'a run is going on already: launch/tpu/watch.py shows it, launch/tpu/stop.py saves and ends it'
  rm -f exit_status
  echo "=== $(date -Is) launch/train.py $*" >>train.log
  setsid nohup bash code/launch/tpu/on_worker.sh run "$@" </dev/null >>train.log 2>&1 &
  echo $! >pid
  say started
}

run() {
  trap : TERM # a machine that goes away ends this shell too: it has to wait for the training to save, and keep its exit status
  local status=0
  (cd code && exec ../venv/bin/python -u launch/train.py "$@") || status=$?
  echo "=== $(date -Is) exit status $status"
  echo "$status" >exit_status.part
  mv exit_status.part exit_status
}

stop() {
  if running; then
    pkill --signal TERM --parent "$(cat pid)" || true
    say 'told to save and stop'
  else
    say 'nothing runs'
  fi
}

state() {
  if [ -e exit_status ]; then
    say "exited $(cat exit_status)"
  elif running; then
    say running
  elif [ -e pid ]; then
    say gone # without an exit status: killed with its shell, or the machine was restarted
  else
    say idle
  fi
}

log() { tail -n 20 train.log 2>/dev/null || say 'nothing was started yet'; }

follow() {
  [ -e pid ] || fail 'nothing was started yet'
  tail -n 20 -f --sleep-interval=0.2 --pid="$(cat pid)" train.log
}

"$@"
