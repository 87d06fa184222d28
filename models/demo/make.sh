#!/usr/bin/env bash
# Makes the demo model again in this folder: a virtual environment, training, and the measurement of the result.
# Called by `make demo`. Takes about twenty minutes of one core with AMX, longer without; see README.md.
set -euo pipefail
cd "$(dirname "$0")"
[ -d .venv ] || python3 -m venv .venv
# The CPU build is enough and saves gigabytes; a PyTorch that is already installed is kept.
.venv/bin/pip install --quiet --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
.venv/bin/python train.py --out . "$@"
.venv/bin/python evaluate.py
