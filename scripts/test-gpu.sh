#!/usr/bin/env bash
# Runs the tests of the CUDA half on this machine's GPU, and prints a table last: test-gpu.sh [BUNDLE]. The bundle of
# `make gpu-bundle` (default target/gpu) is all it needs; without one and with cargo it is built first.
# MILLGATE_EMULATOR=FOLDER runs them on the emulated device instead.
set -euo pipefail
cd "$(dirname "$0")/.."
named="${1:-}"
# shellcheck source=scripts/gpu-bundle-here.sh
. scripts/gpu-bundle-here.sh
# shellcheck source=scripts/gpu-libraries.sh
. scripts/gpu-libraries.sh
export MILLGATE_TEST_GPU=require
# Kernels get other inputs in every run; a failure is seen again with its seed.
export MILLGATE_TEST_SEED="${MILLGATE_TEST_SEED:-$(date +%s)}"
echo "random inputs from MILLGATE_TEST_SEED=$MILLGATE_TEST_SEED"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
failed=0
table=()
row() { table+=("$(printf '| %-40s | %6s | %6s | %7s |' "$@")"); }
run() { # run NAME COMMAND...
    local name="$1" start seconds rc=0
    start=$(date +%s)
    shift
    "$@" >"$work/log" 2>&1 || rc=$?
    seconds=$(($(date +%s) - start))
    local passed broken
    passed="$(sed -n 's/.* \([0-9]*\) passed; .*/\1/p' "$work/log" | tail -1)"
    broken="$(sed -n 's/.* \([0-9]*\) failed; .*/\1/p' "$work/log" | tail -1)"
    # A program that finds none of its tests proves nothing.
    if [ "$rc" -eq 0 ] && [ "${passed:-0}" -eq 0 ]; then
        rc=1 broken="no test"
    fi
    if [ "$rc" -ne 0 ]; then
        failed=1
        tail -60 "$work/log"
        broken="${broken:-died}"
    fi
    row "$name" "${passed:-0}" "${broken:-0}" "$seconds s"
}

for program in "$bundle"/tests/*; do
    # Where tests look for models: in this checkout, not in that where they were built.
    case "$(basename "$program")" in
        millgate-kernels-*) package="$PWD/kernels" ;;
        millgate-models-*) package="$PWD/models" ;;
        *) package="$PWD" ;;
    esac
    # Few at a time: they share one device.
    run "$(basename "$program")" env CARGO_MANIFEST_DIR="$package" "$program" cuda --test-threads=4
done
sanitizer="$bundle/sanitizer/compute-sanitizer"
if [ -x "$sanitizer" ] && [ -z "${MILLGATE_EMULATOR:-}" ]; then
    kernels="$(echo "$bundle"/tests/millgate-kernels-test-*)"
    for tool in memcheck racecheck synccheck; do
        # Up to a hundred times slower than without: what is not done in time counts as died.
        # A kernel is looked up in one module after the other: the driver's "not found" is no error of ours.
        run "compute-sanitizer $tool" timeout 100 "$sanitizer" --tool "$tool" --report-api-errors no --error-exitcode 9 \
            "$kernels" cuda::rows cuda::heads cuda::attention cuda::sample --test-threads=1
    done
else
    echo "compute-sanitizer: not run (it needs a real GPU, and is part of the bundle)"
fi

echo
echo "device: $device"
printf '| %-40s | %6s | %6s | %7s |\n' suite passed failed time
echo "|------------------------------------------|-------:|-------:|--------:|"
printf '%s\n' "${table[@]}"
exit "$failed"
