#!/usr/bin/env bash
# Collects the wheels with which pyrovae trains and measures on Python 3.12 next to torch and numpy, without a network.
# Figures and reports need more packages (matplotlib, plotly, ArviZ) and are left out.
#
#     bash tests/benchmarks/make_wheels.sh FOLDER
set -euo pipefail
folder=$1
most=$((64 * 1024 * 1024))
packages=(
    annotated-doc click filelock h5netcdf h5py iniconfig markdown-it-py mdurl opt-einsum packaging pandas
    platformdirs pluggy psutil pygments pyro-api pyro-ppl pytest python-dateutil rich ruamel.yaml
    safetensors scipy shellingham six tqdm typer xarray zuko
)
mkdir -p "$folder"
download=(python -m pip download -q -d "$folder" --only-binary=:all: --python-version 3.12 --implementation cp)
for version in 2_28 2_27 2_24 2_17 2_12 2_5; do download+=(--platform "manylinux_${version}_x86_64"); done
download+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
"${download[@]}" pydantic  # with the version of pydantic-core that it takes
"${download[@]}" --no-deps "${packages[@]}"
python -m pip wheel -q --no-deps -w "$folder" "$(dirname "$0")/../.."
size=$(cat "$folder"/*.whl | wc -c)
echo "$(ls "$folder" | wc -l) wheels, $((size / 1024 / 1024)) MiB"
test "$size" -le "$most" || { echo "expected at most $((most / 1024 / 1024)) MiB" >&2; exit 1; }
