#!/usr/bin/env bash
# Builds the emulator with g++ and runs its own tests: build.sh OUT_DIR. Sources that did not change are not compiled.
set -euo pipefail
cd "$(dirname "$0")/.."
out="$1"
mkdir -p "$out"

flags=(-std=c++17 -O2 -march=native -fPIC -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -I.)
headers="$(cat device.cuh ./*.cuh host/*.h | sha256sum)"
objects=()
compile() { # compile SOURCE: its object goes to `objects`
    local object stamp
    object="$out/$(basename "$1").o"
    stamp="$(echo "$headers" "${flags[@]}" | cat - "$1" | sha256sum)"
    if [ "$(cat "$object.stamp" 2>/dev/null)" != "$stamp" ]; then
        g++ "${flags[@]}" -c -o "$object" -x c++ "$1"
        echo "$stamp" >"$object.stamp"
    fi
    objects+=("$object")
}

for source in ./*.cu host/runtime.cpp host/kernels.cpp; do
    compile "$source"
done
shared=("${objects[@]}")
compile host/selftest.cpp
g++ -o "$out/selftest" "${objects[@]}"
"$out/selftest"
