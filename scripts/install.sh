#!/usr/bin/env bash
# Installs foveal at the pinned versions: scripts/install.sh FOLDER REQUIREMENT…
# FOLDER is the virtual environment, created if missing. Uses uv if available, otherwise pip.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$1
shift
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "foveal needs Python 3.11 or newer, and $python is $("$python" --version 2>&1); say make PYTHON=/path/to/python" >&2
    exit 1
}
if [ ! -x "$folder/bin/python" ] || ! "$folder/bin/python" -c ''; then
    "$python" -m venv --clear "$folder" || {
        rm -rf "$folder"
        echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2
        exit 1
    }
fi
# Bytecode is compiled once here, not in each process that imports torch if Python may not write bytecode.
# uv would reuse an earlier build of the same foveal version even if the source has changed since.
uv_install=(pip install --quiet --compile-bytecode --reinstall-package foveal --reinstall-package foveal-kernels --python "$folder/bin/python")
if uv --version >/dev/null 2>&1; then
    install=(uv "${uv_install[@]}")
elif "$folder/bin/python" -m pip install --quiet --constraint constraints.txt uv; then
    install=("$folder/bin/python" -m uv "${uv_install[@]}")
else
    install=("$folder/bin/python" -m pip install --quiet)
fi
echo "installing $* into $folder"
"${install[@]}" --constraint constraints.txt "$@"
