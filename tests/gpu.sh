#!/usr/bin/env bash
# Check and time the program on an NVIDIA GPU: tests/gpu.sh OUT.json [--rehearse]
exec python3 "$(dirname "$0")/gpu.py" "$@"
