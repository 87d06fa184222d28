#!/usr/bin/env bash
# Speed of a model's shape on this machine's GPU: bench-gpu.sh SHAPE [BUNDLE]. Builds the bundle where cargo is.
set -euo pipefail
cd "$(dirname "$0")/.."
named="${2:-}"
# shellcheck source=scripts/gpu-bundle-here.sh
. scripts/gpu-bundle-here.sh
# shellcheck source=scripts/gpu-libraries.sh
. scripts/gpu-libraries.sh
echo "device: $device"
exec python3 scripts/bench_gpu.py "${1:-8b}" "$bundle"
