#!/usr/bin/env bash
# Run the tests with the oldest versions that pyproject.toml allows and with the newest that there are.
#
#     tests/versions.sh FOLDER [arguments of pytest]
#
# FOLDER gets the environments `oldest` and `newest`, of 6 GB each; those that are there are brought up to date. The tests
# take about ten minutes in each on two cores. Then each environment reads a results file of the other.
set -euo pipefail
folder=$(realpath -m "${1:?usage: tests/versions.sh FOLDER [arguments of pytest]}")
shift
cd "$(dirname "$0")/.."
status=0
rm -rf "$folder/results"
for name in oldest newest; do
  python=$folder/$name/bin/python
  resolution=$([ $name = oldest ] && echo lowest-direct || echo highest)
  python3 -m venv "$folder/$name"
  "$python" -m pip install -q --upgrade uv
  "$folder/$name/bin/uv" pip install -q --python "$python" --upgrade --resolution "$resolution" ".[mpich,test]"
  echo "$name: $("$python" -m pip freeze | grep -E '^(torch|diffusers|transformers|h5py|mpi4py|mpich)==' | xargs)"
  "$python" -m pytest -n 2 "$@" || status=1
  "$python" -m genfl_mpi --quiet method=fedavg rounds=1 output="$folder/results/$name" || status=1
done
for name in oldest newest; do
  "$folder/$name/bin/python" -m genfl_mpi digest "$folder"/results/*/*.h5 || status=1
done
exit $status
