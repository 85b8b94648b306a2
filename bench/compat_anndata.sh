#!/usr/bin/env bash
# Checks that anndata 0.9 to 0.13 read our .h5sc files, and write to them.
#
#   bench/compat_anndata.sh [VENVS_DIR [FILE...]]
#
# Without FILE the checkout is installed in an environment of its own, and compat_files.py writes the files that are
# checked. Each version of anndata has a virtual environment in VENVS_DIR, which is made if it is missing and reused if
# it is there; without VENVS_DIR all are thrown away at the end.
#
#   PYTHON      interpreter for the environments (default python3; 3.11)
#   PYTHON_NEW  interpreter for anndata 0.13, which needs 3.12 (default: the first of python3.13 and python3.12)
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

venvs=${1:-$scratch/venvs}
files=("${@:2}")
mkdir -p "$venvs"

# environment NAME INTERPRETER REQUIREMENT...
environment() {
    local venv=$venvs/$1
    [[ -x $venv/bin/python ]] || "$2" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "${@:3}"
}

if ((${#files[@]} == 0)); then
    environment writer "${PYTHON:-python3}" "$checkout"
    "$venvs/writer/bin/python" "$checkout/bench/compat_files.py" "$scratch"
    files=("$scratch"/*.h5sc)
fi

new=${PYTHON_NEW:-$(command -v python3.13 || command -v python3.12 || true)}
failed=0
# Older versions do not say which numpy and pandas are too new for them.
while read -r version interpreter requirements; do
    if [[ -z $interpreter ]]; then
        echo "skip  anndata $version: name a Python of 3.12 or later in PYTHON_NEW"
        continue
    fi
    # shellcheck disable=SC2086  # several requirements
    environment "anndata-$version" "$interpreter" "anndata==$version" $requirements
    "$venvs/anndata-$version/bin/python" "$checkout/bench/compat_anndata.py" "${files[@]}" || failed=1
done <<VERSIONS
0.9.2 ${PYTHON:-python3} numpy<2 pandas<2.2
0.10.9 ${PYTHON:-python3} numpy<2 pandas<2.3
0.11.4 ${PYTHON:-python3} pandas<3
0.12.0 ${PYTHON:-python3} pandas<3
0.12.19 ${PYTHON:-python3} pandas<3
0.13.4 ${new:-} pandas
VERSIONS
exit $failed
