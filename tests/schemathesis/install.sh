#!/usr/bin/env bash
# Installs schemathesis, which holds a running server against its OpenAPI document, beside this file. Does nothing when it is there already.
set -euo pipefail
cd "$(dirname "$0")"

if ! .venv/bin/python -c 'import schemathesis' 2>/dev/null || [ requirements.txt -nt .venv/installed ]; then
    python3 -m venv .venv || { echo "python3 -m venv failed: install Python 3 with its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    touch .venv/installed
fi
