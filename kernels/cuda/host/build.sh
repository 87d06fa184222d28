#!/usr/bin/env bash
# Builds the emulator with g++ and runs its own tests: build.sh OUT_DIR. Sources that did not change are not compiled.
# Programs that find OUT_DIR in LD_LIBRARY_PATH then believe in a device. A test tool only: it is never shipped.
set -euo pipefail
cd "$(dirname "$0")/.."
out="$1"
mkdir -p "$out"

flags=(-std=c++17 -O3 -march=native -ffp-contract=off -fPIC -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -I.)
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

for source in ./*.cu host/{runtime,kernels,memory,stream,driver}.cpp; do
    compile "$source"
done
driver=("${objects[@]}")
compile host/selftest.cpp
g++ -o "$out/selftest" "${objects[@]}"
"$out/selftest"
MILLGATE_EMULATED_ORDER=reverse "$out/selftest"

objects=()
flags+=(-fassociative-math -fno-signed-zeros -fno-trapping-math)
compile host/blas.cpp
# Linked to a name beside the final one, then moved: a running test keeps the library it opened.
link() { # link NAME OBJECT...
    g++ -shared -Wl,-soname,"$1" -Wl,-rpath,'$ORIGIN' -o "$out/$1.new" "${@:2}"
    mv "$out/$1.new" "$out/$1"
}
link libcuda.so.1 "${driver[@]}"
link libcublas.so.13 "${objects[@]}" "$out/libcuda.so.1"
# The names that are tried first, so that no real driver is found before.
ln -sfn libcuda.so.1 "$out/libcuda.so"
for name in libcublasLt.so.13 libcublas.so libcublasLt.so; do
    ln -sfn libcublas.so.13 "$out/$name"
done
