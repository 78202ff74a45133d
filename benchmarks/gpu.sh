#!/bin/sh
# What only a machine with a GPU can tell, in ten minutes at most: sh benchmarks/gpu.sh [FOLDER]
#
# Each step has a time limit of its own, prints what it measured, and leaves its output in FOLDER (default: gpu); a step
# that fails does not stop the others. The last lines say which steps failed.
set -u
OUT=${1:-gpu}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT"
failed=""

# step NAME SECONDS COMMAND...: run a command, with its output in FOLDER/NAME.txt.
step() {
    name=$1 seconds=$2
    shift 2
    echo "==> $name (at most $seconds s): $*"
    timeout "$seconds" "$@" > "$OUT/$name.txt" 2>&1 || failed="$failed $name"
    tail -n 25 "$OUT/$name.txt"
}

step machine 20 nvidia-smi
step plan 60 "$(dirname "$PYTHON")/rayapp" doctor
# Replicas, a training and scoring together on this machine's GPUs, as Ray places them.
step placement 60 "$PYTHON" -m benchmarks.placement
# Clicks: the time of each part, then 1 to 8 clients; with keys requests go through HAProxy and gRPC.
step clicks 90 "$PYTHON" -m benchmarks.clicks --json --replicas 1 --clicks 10
step clicks_with_keys 90 "$PYTHON" -m benchmarks.clicks --json --replicas 1 --clicks 10 --keys
# Clicks beside a training on the same GPU, and beside scoring.
step beside_training 105 "$PYTHON" -m benchmarks.background --json --clicks 30
step beside_scoring 105 "$PYTHON" -m benchmarks.background --json --clicks 30 --work scoring
# Memory that the planner predicts, and what is used.
step memory 60 "$PYTHON" -m benchmarks.planner

echo "failed:${failed:- none}"
[ -z "$failed" ]
