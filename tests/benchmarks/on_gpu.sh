#!/usr/bin/env bash
# What only a GPU can show, in one call of ten minutes: the tests of tests/training/test_cuda.py, times of training steps,
# one seed of paper-ood as far as time allows, and times of I and G. Needs Python 3.12, torch and numpy, and no network.
#
#     bash tests/benchmarks/make_wheels.sh wheels            # before, where there is a network
#     bash tests/benchmarks/on_gpu.sh OUT [STEP…]            # all steps by default: contract speed study information
#
# Logs are in OUT, and the study is in OUT/paper-ood. The command again, with OUT and "study", continues the study.
#
# WHEELS=folder      with the wheels (wheels)
# PYTHON=command     (python3)
# DEVICE=cuda|cpu    a CPU is for trying the script out (cuda)
# BUDGET=seconds     for all steps, of which each gets a fixed share (560)
# STUDY="…"          further options of "pyrovae run paper-ood"
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
steps=${*:2}
steps=${steps:-contract speed study information}
wheels=$(cd "${WHEELS:-wheels}" && pwd) || exit
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
budget=${BUDGET:-560}
precision=tf32
test "$device" = cuda || precision=float32

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl || exit
: >"$out/summary.txt"
export PYTHONPATH=$PWD:$site PYTHONUNBUFFERED=1

# step NAME PERCENT COMMAND…: runs a command for its share of the budget at most; an interrupt lets a study write its state.
step() {
    local name=$1 limit=$(($2 * budget / 100)) began=$SECONDS status
    shift 2
    [[ " $steps " == *" $name "* ]] || return 0
    echo "+ $name: $*"
    timeout --signal=INT --kill-after=20 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    echo "$name: status $status (124: out of time) after $((SECONDS - began)) of $limit s" | tee -a "$out/summary.txt"
}

step contract 22 "$python" -m pytest -o addopts= -p no:cacheprovider -q --import-mode=importlib \
    tests/training/test_cuda.py
step speed 18 "$python" tests/benchmarks/training.py --device "$device" --runs 12 --pixels 3072 --depth 1,3 --rounds 3 \
    --precision "$precision"
# shellcheck disable=SC2086
step study 50 "$python" -m pyrovae run paper-ood --set seed=0 --set "precision=$precision" --device "$device" \
    --out "$out/paper-ood" ${STUDY:-}
step information 10 "$python" tests/benchmarks/measuring.py information full-rank decoder --device "$device"
cat "$out/summary.txt"
