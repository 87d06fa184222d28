#!/usr/bin/env bash
# Compiles every CUDA kernel for all architectures the compiler and we know, and writes what the assembler says about
# registers, spills and shared memory into docs/cuda-performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
CUDA_HOME="$(bash scripts/cuda-toolkit.sh)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

targets=()
for arch in 80 86 89 90a 100 120; do
    targets+=("-gencode=arch=compute_$arch,code=sm_$arch")
done
printf '%s\0' kernels/cuda/*.cu | xargs -0 -P "$(nproc)" -I{} sh -c \
    'name="$(basename "$1" .cu)"; work="$2"; nvcc="$3"; shift 3
     "$nvcc" -fatbin -O3 -std=c++17 -Xptxas -v "$@" -o "$work/$name.fatbin" "kernels/cuda/$name.cu" 2>"$work/$name.ptxas"' \
    sh {} "$work" "$CUDA_HOME/bin/nvcc" "${targets[@]}"
python3 scripts/cuda-resources.py write "$work"/*.ptxas
