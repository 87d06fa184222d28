#!/usr/bin/env bash
# Makes the tiny checkpoints and vocabularies of models/testdata and transformers' answers again, then compares ours.
# Needs python3 with the venv module and the network for the packages in requirements.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv="${PARITY_VENV:-target/parity-venv}"
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu -r models/scripts/requirements.txt
fi
"$venv/bin/python" models/scripts/make_checkpoints.py "$@"
"$venv/bin/python" models/scripts/make_text_testdata.py
cargo test -p millgate-models --test models -- parity text
