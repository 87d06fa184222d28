#!/usr/bin/env bash
# Builds all that `make test-gpu` and `make bench-gpu` run into target/gpu (and target/gpu.tar.xz), for a machine with a
# GPU and without cargo: there, in the same checkout, `mkdir -p target && tar -C target -xf gpu.tar.xz`.
set -euo pipefail
cd "$(dirname "$0")/.."
CUDA_HOME="$(bash scripts/cuda-toolkit.sh)"
export CUDA_HOME
target="${CARGO_TARGET_DIR:-target}"
out="target/gpu"
rm -rf "$out"
mkdir -p "$out/tests"

copy() { # copy FROM NAME, without what only debuggers read
    strip -o "$out/$2" "$1"
}

cargo test --workspace --features cuda --no-run --message-format=json-render-diagnostics |
    python3 scripts/gpu_bundle.py >"$out/list"
while read -r name path; do
    copy "$path" "tests/$name"
    # What holds no test of the GPU stays here.
    tests="$("$out/tests/$name" --list cuda)"
    [[ "$tests" == *": test"* ]] || rm "$out/tests/$name"
done <"$out/list"
cargo bench --package millgate-kernels --features cuda --bench gpu --no-run --message-format=json-render-diagnostics |
    python3 scripts/gpu_bundle.py >"$out/list"
while read -r _ path; do copy "$path" bench; done <"$out/list"
rm "$out/list"

cargo build --workspace --release --features cuda --bin millgate --bin steps
copy "$target/release/millgate" millgate
copy "$target/release/steps" steps
# NVIDIA's checker of memory accesses and races, which PyTorch does not bring.
sanitizer="${XDG_CACHE_HOME:-$HOME/.cache}/millgate/sanitizer-13.5"
if [ ! -e "$sanitizer/complete" ]; then
    python3 -m venv "$sanitizer"
    "$sanitizer/bin/pip" install --quiet --disable-pip-version-check --no-deps nvidia-cuda-sanitizer-api==13.5.25
    touch "$sanitizer/complete"
fi
mkdir "$out/sanitizer"
find "$sanitizer"/lib/python3*/site-packages/nvidia/cu13/compute-sanitizer -maxdepth 1 -type f -exec cp {} "$out/sanitizer" \;

# Every program holds the same kernels: a dictionary that spans several of them keeps all but the first copy out.
tar -C target -cf - gpu | xz -T1 --lzma2=preset=2,dict=512MiB >target/gpu.tar.xz
du -sh "$out" target/gpu.tar.xz
most=$((64 << 20))
[ "$(stat -c %s target/gpu.tar.xz)" -le "$most" ] || { echo "target/gpu.tar.xz is larger than 64 MiB" >&2; exit 1; }
