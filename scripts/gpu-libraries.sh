# shellcheck shell=bash
# Sourced: puts the driver's, PyTorch's and the toolkit's libraries, or the emulated ones, where programs find them, and
# sets `device` to the name of what was found.
if [ -n "${MILLGATE_EMULATOR:-}" ]; then
    LD_LIBRARY_PATH="$(cd "$MILLGATE_EMULATOR" && pwd)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    device="emulated: correctness only"
else
    wheels="$(python3 - 2>/dev/null <<'PYTHON' || true
import glob, site, sys
folders = site.getsitepackages() + [site.getusersitepackages()] + sys.path
found = {f for folder in folders for f in glob.glob(folder + "/nvidia/cu13/lib") + glob.glob(folder + "/nvidia/cublas/lib")}
print(":".join(sorted(found)))
PYTHON
)"
    LD_LIBRARY_PATH="$wheels:/usr/local/cuda/lib64:/usr/local/nvidia/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    device="$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1 || true)"
    device="${device:-none that nvidia-smi knows}"
fi
export LD_LIBRARY_PATH
