#!/usr/bin/env bash
# Commands for one worker of a pod. The programs in launch/tpu/ run them over ssh:
#
#   on_worker.sh COMMAND [ARGUMENT...]
#
# All files are in ~/cpt_jax:
#   code/        the checkout
#   venv/        its Python packages
#   train.log    output of the run
#   pid          process id of the shell that runs the program
#   exit_status  exit status of the run; missing while it is in progress
#   lock         held while the run is in progress
set -euo pipefail
cd "$(dirname "$0")/../../.."
worker=${HOSTNAME:-$(hostname)}
# Of the wheel for Linux on x86_64, the processor of all hosts of TPUs.
readonly UV_SHA256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19

say() { echo "worker $worker: $*"; }

fail() {
  echo "error: worker $worker: $*" >&2
  exit 1
}

# Returns success if a run is in progress. The run and its children hold a lock, which the kernel
# releases when they end for any reason. A process id is not enough, because another process may get
# the same one.
running() { ! flock --nonblock --shared lock true; }

# Replaces the checkout by ~/cpt_jax/next, and installs the packages that it needs.
install() { # REQUIREMENT [BUCKET FOLDER]
  if running; then fail 'a run is in progress: save and end it with launch/tpu/stop.py'; fi
  rm -rf code
  mv next code
  [ -x venv/bin/pip ] || make_venv
  venv/bin/python -m pip install --quiet --disable-pip-version-check --editable 'code[gcs]' "$1"
  if [ $# -eq 3 ]; then mount_bucket "$2" "$3"; fi
  say installed
}

# The images of Cloud TPU have different versions of Python: Ubuntu 22.04 has 3.10, which JAX no
# longer supports. uv installs one version on all of them, the newest that the tests use, and with it
# comes the newer JAX of requirements.txt. pip refuses any other file than the one with this hash.
make_venv() {
  if [ ! -x bin/uv ]; then
    echo "uv==0.13.9 --hash=sha256:$UV_SHA256" >uv.txt
    python3 -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
      --target uv --requirement uv.txt
    mkdir -p bin
    mv uv/bin/uv bin/uv
    rm -r uv uv.txt
  fi
  bin/uv venv --quiet --clear --seed --python 3.13 venv
}

# Mounts a bucket. Installs gcsfuse as in cloud.google.com/storage/docs/cloud-storage-fuse/install.
# --rename-dir-limit: the last step of saving a checkpoint is to rename its folder.
# --metadata-cache-*: a host must immediately see the files that another host has written.
mount_bucket() { # BUCKET FOLDER
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com/apt
    echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release -c -s) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    curl -LsSf "$url/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse
  fi
  if ! mountpoint -q "$2"; then
    mkdir -p "$2" 2>/dev/null || { sudo mkdir -p "$2" && sudo chown "$(id -u):$(id -g)" "$2"; }
    gcsfuse --implicit-dirs --rename-dir-limit=100000 \
      --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$2"
  fi
  check_rights "$1" "$2"
}

# Fails if the worker cannot create and delete files in the bucket.
check_rights() { # BUCKET FOLDER
  local probe=$2/.cpt_jax_$worker
  if ! { touch "$probe" && rm "$probe"; }; then
    local metadata=http://metadata.google.internal/computeMetadata/v1/instance account
    account=$(curl -sf -H 'Metadata-Flavor: Google' \
      "$metadata/service-accounts/default/email") || account=ACCOUNT
    fail "gs://$1 cannot be written: gcloud storage buckets add-iam-policy-binding gs://$1" \
      "--member=serviceAccount:$account --role=roles/storage.objectUser"
  fi
}

# Starts a program in the background, detached from ssh.
start() { # PROGRAM [NAME=VALUE...] -- flags of launch/PROGRAM.py
  exec 9>>lock
  flock --wait 0.5 9 ||
    fail 'a run is in progress: see launch/tpu/watch.py; save and end it with launch/tpu/stop.py'
  rm -f exit_status
  echo "=== $(date -Is) launch/$1.py ${*:2}" >>train.log
  setsid nohup bash code/launch/tpu/on_worker.sh run "$@" </dev/null >>train.log 2>&1 &
  echo $! >pid
  say started
}

# Runs the program and writes its exit status. `start` calls this function.
run() { # as start
  # When a preempted machine shuts down, this shell receives SIGTERM too. It must not end then: it
  # waits until the program has saved a checkpoint, and writes the exit status.
  trap : TERM
  local program=$1 status=0
  shift
  while [ "$1" != -- ]; do
    export "${1?}"
    shift
  done
  (cd code && exec ../venv/bin/python -u "launch/$program.py" "${@:2}") || status=$?
  echo "=== $(date -Is) exit status $status"
  echo "$status" >exit_status.part
  mv exit_status.part exit_status
}

# Sends SIGTERM to the program, which then saves and stops.
stop() {
  if running; then
    pkill --signal TERM --parent "$(cat pid)" || true
    say 'SIGTERM sent: the run saves and stops'
  else
    say 'no run is in progress'
  fi
}

# Prints the state of the run.
state() {
  if [ -e exit_status ]; then
    say "exited $(cat exit_status)"
  elif running; then
    say running
  elif [ -e pid ]; then
    # There is no exit status: the run and its shell were killed, or the machine was restarted.
    say gone
  else
    say idle
  fi
}

# Prints the last 20 lines of the log.
log() { tail -n 20 train.log 2>/dev/null || say 'no run was started yet'; }

# Prints the log until the run ends.
follow() {
  [ -e pid ] || fail 'no run was started yet'
  tail -n 20 -f --sleep-interval=0.2 --pid="$(cat pid)" train.log
}

"$@"
