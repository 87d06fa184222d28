# shellcheck shell=bash
# Sourced: sets `bundle` to the folder `named`, or to target/gpu, which is built where cargo is and it is missing or older
# than the sources: what was built before they changed proves nothing about them.
bundle="${named:-target/gpu}"
newer="$(find kernels models src tests -name target -prune -o \( -name '*.rs' -o -name '*.cu' \) -newer "$bundle/tests" -print -quit 2>/dev/null || true)"
if [ ! -d "$bundle/tests" ] || { [ -n "$newer" ] && [ -z "$named" ] && command -v cargo >/dev/null; }; then
    if [ -n "$named" ] || ! command -v cargo >/dev/null; then
        echo "no bundle at $bundle: make gpu-bundle, where cargo is" >&2
        exit 1
    fi
    bash scripts/gpu-bundle.sh
elif [ -n "$newer" ]; then
    echo "NOTE: $bundle is older than the sources here ($newer): it is measured and tested as it was built"
fi
