#!/usr/bin/env bash
# Trains on an existing Cloud TPU slice, one process per host. Arguments are passed to tsm_jax.train:
#
#   launch/cloud_tpu.sh --config configs/tsm_k400_videos.py --config.workdir=/shared/k400
#
# Copies this checkout to every host, installs and runs it; jax discovers the other hosts. The hosts
# need Python 3.11 or newer; if there are several, the workdir must be on a disk that all of them
# mount (Filestore).
set -euo pipefail

# FILL IN 1 of 2: the name of the TPU.
tpu=FILL_IN
# FILL IN 2 of 2: its zone.
zone=FILL_IN

if [ "$tpu" = FILL_IN ] || [ "$zone" = FILL_IN ]; then
    echo "error: fill in the TPU's name and zone in $0" >&2
    exit 1
fi
if [ $# -eq 0 ]; then
    echo "error: no arguments for tsm_jax.train; give some, e.g. --config configs/quickstart.py" >&2
    exit 1
fi
cd "$(dirname "$0")/.."

on_every_host() {
    gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$1"
}

# Only files that git tracks, so that data and checkpoints are not copied.
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git ls-files -z | tar --create --gzip --null --files-from=- --file="$archive"
gcloud compute tpus tpu-vm scp "$archive" "$tpu:tsm_jax.tar.gz" --zone="$zone" --worker=all
on_every_host "mkdir -p tsm_jax && tar -xzf tsm_jax.tar.gz -C tsm_jax \
    && \$(command -v python3.13 || command -v python3.12 || command -v python3.11 || echo python3) \
        -m venv tsm_jax/.venv && tsm_jax/.venv/bin/pip install -q -e 'tsm_jax[tpu]'"

# Exit code 75: the run was asked to stop (maintenance) and has saved; it continues from there.
on_every_host "cd tsm_jax; while .venv/bin/python -u -m tsm_jax.train$(printf ' %q' "$@"); \
    code=\$?; [ \$code -eq 75 ]; do sleep 30; done; exit \$code"
