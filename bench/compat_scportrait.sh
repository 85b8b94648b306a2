#!/usr/bin/env bash
# Check that scPortrait 1.8.0 itself opens, trains from and plots our .h5sc files: a slide, a time course, a table.
#
#   bench/compat_scportrait.sh [VENV_DIR [FILE]]
#
# Without FILE, the checkout is installed and compat_files.py writes the files to check. With FILE, only that file is
# checked and the checkout is not installed. The virtual environment is created if it does not exist, reused if it
# does, and deleted at the end if no folder is given.
#
#   VENV        the same as the first argument
#   PYTHON      interpreter for the virtual environment (default python3; 3.11 to 3.13)
#   TORCH_SPEC  the requirement that pip installs for torch (default torch). By default, pip's torch brings several
#               GB of CUDA libraries. To avoid that, give a CPU build, for example TORCH_SPEC=torch==2.13.0 if pip
#               is configured to find one. torch and scPortrait are resolved in one step, because scPortrait alone
#               would pull the newest torchvision, which replaces the installed torch.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

venv=${1:-${VENV:-$scratch/venv}}
file=${2:-}

[[ -x $venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet "${TORCH_SPEC:-torch}" "scportrait==1.8.0"

# torchvision's usual wheel is built for CUDA. With a CPU build of torch, its compiled operators do not load, and its
# import fails when it registers two of them. No check calls them, so it is enough to declare them.
if ! "$venv/bin/python" -c 'import torchvision' 2>"$scratch/torchvision.log"; then
    if ! grep -q 'operator torchvision::nms does not exist' "$scratch/torchvision.log"; then
        cat "$scratch/torchvision.log" >&2
        exit 1
    fi
    site_packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    cat >>"$site_packages/torchvision/extension.py" <<'PYTHON'


if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PYTHON
fi

files=("$file")
if [[ -z $file ]]; then
    "$venv/bin/python" -m pip install --quiet "$checkout"
    "$venv/bin/python" "$checkout/bench/compat_files.py" "$scratch"
    files=("$scratch"/*.h5sc)
fi
for file in "${files[@]}"; do
    MPLBACKEND=Agg "$venv/bin/python" "$checkout/bench/compat_scportrait.py" "$file"
done
