#!/usr/bin/env bash
# Serving figures over HTTP: starts a server on a free port and a fresh data directory, measures 1, 8 and 32 clients.
# Usage: benches/serving.sh path/to/millgate [serve options, such as --model q=hf:Qwen/Qwen3-0.6B]
set -euo pipefail
millgate=$1; shift
work=$(mktemp -d)
trap 'kill "${server:-0}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

MILLGATE_ADMIN_KEY=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
export MILLGATE_ADMIN_KEY MILLGATE_API_KEY=$MILLGATE_ADMIN_KEY
"$millgate" serve --listen 127.0.0.1:0 --data-dir "$work/data" "$@" 2>"$work/log" &
server=$!
for _ in $(seq 600); do
    MILLGATE_URL=$(grep -om1 'http://127\.0\.0\.1:[0-9]*' "$work/log" || true)
    [ -n "$MILLGATE_URL" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.5
done
export MILLGATE_URL

for clients in 1 8 32; do
    "$millgate" bench --clients "$clients" --requests $((clients * 4)) --prompt-tokens 128 --output-tokens 64
    echo
done
