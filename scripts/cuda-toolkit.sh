#!/usr/bin/env bash
# Installs the CUDA 13.0 compiler from its Python wheels (105 MB, no GPU, no root) in a cache outside the tree, once,
# and prints the CUDA_HOME to use. A CUDA_HOME that has nvcc is taken as it is.
set -euo pipefail

if [ -n "${CUDA_HOME:-}" ] && [ -x "$CUDA_HOME/bin/nvcc" ]; then
    echo "$CUDA_HOME"
    exit
fi

cache="${XDG_CACHE_HOME:-$HOME/.cache}/millgate/cuda-13.0"
home() { echo "$cache"/lib/python3*/site-packages/nvidia/cu13; }

if [ ! -e "$cache/complete" ]; then
    rm -rf "$cache"
    mkdir -p "$(dirname "$cache")"
    python3 -m venv "$cache" >&2
    # Without dependencies: the wheels name each other without versions, and newer parts do not fit the 13.0 driver.
    "$cache/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
    ln -sfn lib "$(home)/lib64" # where nvcc.profile looks
    "$(home)/bin/nvcc" --version >/dev/null
    touch "$cache/complete"
fi
home
