#!/usr/bin/env bash
# Installs the official OpenAI clients that the tests drive the server with, and Prometheus' own parser, beside this file. Does nothing when they are there already.
set -euo pipefail
cd "$(dirname "$0")"

if ! .venv/bin/python -c 'import openai, prometheus_client' 2>/dev/null || [ requirements.txt -nt .venv/installed ]; then
    python3 -m venv .venv || { echo "python3 -m venv failed: install Python 3 with its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    touch .venv/installed
fi
if [ ! -d node_modules/openai ] || [ package-lock.json -nt node_modules/.installed ]; then
    command -v npm >/dev/null || { echo "npm is missing: install Node.js 20 or newer (Debian: apt-get install nodejs npm)" >&2; exit 1; }
    npm ci --no-audit --no-fund --silent
    touch node_modules/.installed
fi
