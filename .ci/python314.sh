#!/usr/bin/env bash
# CPython 3.14 beside the system, from Debian's unstable archive: python314.sh FOLDER, then FOLDER/usr/bin/python3.14 -m venv.
set -euo pipefail
packages=(
  python3.14 python3.14-minimal python3.14-venv libpython3.14-stdlib libpython3.14-minimal
  python3-pip-whl python3-setuptools-whl
  libbz2-1.0 liblzma5 libexpat1 libffi8 libuuid1 libsqlite3-0
  libncursesw6 libtinfo6 libreadline8t64 libgdbm6t64 libdb5.3t64 libnsl2 libtirpc3t64
)
"$(dirname "${BASH_SOURCE[0]}")/from_sid.sh" "$1" usr/bin/python3.14 "${packages[@]}"

folder=$(cd "$1" && pwd)
# ensurepip takes its wheels from an absolute path, where the system may have older ones, or none
sed -i "s#^_pkg_dir = .*#_pkg_dir = '$folder/usr/share/python-wheels'#" "$folder/usr/lib/python3.14/ensurepip/__init__.py"
"$folder/usr/bin/python3.14" -c 'import ctypes, sqlite3, ssl, sys; print(sys.version)'
