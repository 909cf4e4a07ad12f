#!/usr/bin/env bash
# Write the lock files of the image anew, from pyproject.toml and constraints.txt; needs uv. The hashes are those that
# the package index lists for the files of each version.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  uv pip compile "$@" --quiet --constraints constraints.txt --generate-hashes --no-annotate \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --custom-compile-command cluster/lock.sh
}
echo torch | compile - --output-file cluster/torch-cuda.lock
# torch and what its CUDA build brings come before the rest, and only in one variant of the image.
accelerator=$(grep -oE '^(torch|triton|cuda-|nvidia-)[a-z0-9-]*' cluster/torch-cuda.lock | sed 's/^/--no-emit-package=/')
# shellcheck disable=SC2086
compile pyproject.toml cluster/requirements.in --extra s3 --extra gcs --extra optuna $accelerator \
  --output-file cluster/requirements.lock
