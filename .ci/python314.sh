#!/usr/bin/env bash
# CPython 3.14 beside the system, from Debian's unstable archive: python314.sh FOLDER, then FOLDER/usr/bin/python3.14 -m venv.
# Nothing is installed into the system. Needs apt, dpkg-deb and patchelf; says what is missing and fails where it cannot be had.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

# Its own libraries come along, libc included: those of an older system are too old for it.
packages=(
  python3.14 python3.14-minimal python3.14-venv libpython3.14-stdlib libpython3.14-minimal
  python3-pip-whl python3-setuptools-whl
  libc6 libgcc-s1 libstdc++6 libssl3t64 zlib1g libzstd1 libbz2-1.0 liblzma5 libexpat1 libffi8 libuuid1 libsqlite3-0
  libncursesw6 libtinfo6 libreadline8t64 libgdbm6t64 libdb5.3t64 libnsl2 libtirpc3t64
)

cannot() { echo "no CPython 3.14: $*" >&2; exit 1; }

debian_mirror() {  # the one that this system uses, else the public one
  local found
  found=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 == "Debian" && !/security/ { print $2; exit }')
  echo "${found:-http://deb.debian.org/debian}"
}

download() {  # with lists and a cache of our own
  local keys
  keys=$(compgen -G '/usr/share/keyrings/debian-archive-keyring.*' | head -n 1) || cannot 'no keys of Debian (debian-archive-keyring)'
  mkdir -p lists/partial cache/archives/partial packages
  echo "deb [arch=$(dpkg --print-architecture) signed-by=$keys] $(debian_mirror) sid main" >sources.list
  cat >apt.conf <<CONF
Dir::Etc::sourcelist "$scratch/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$scratch/lists";
Dir::Cache "$scratch/cache";
APT::Sandbox::User "root";
CONF
  export APT_CONFIG=$scratch/apt.conf
  apt-get -qq update && (cd packages && apt-get -qq download "${packages[@]}")
}

for needed in apt-get dpkg-deb patchelf; do
  command -v "$needed" >/dev/null || cannot "there is no $needed"
done
download || cannot 'apt-get could not download its packages'
for package in packages/*.deb; do dpkg-deb -x "$package" "$folder"; done

libraries=$(dirname "$(find "$folder" -name libc.so.6 | head -n 1)")
loader=$(find "$folder" -name 'ld-linux*.so.*' | head -n 1)
patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$folder/usr/bin/python3.14"
# ensurepip takes its wheels from an absolute path, where the system may have older ones, or none
sed -i "s#^_pkg_dir = .*#_pkg_dir = '$folder/usr/share/python-wheels'#" "$folder/usr/lib/python3.14/ensurepip/__init__.py"
"$folder/usr/bin/python3.14" -c 'import ctypes, sqlite3, ssl, sys; print(sys.version)'
