#!/usr/bin/env bash
# Programs of Debian's unstable archive beside the system: from_sid.sh FOLDER "usr/bin/PROGRAM..." PACKAGE...
# Nothing is installed into the system, and no dependency is looked for: PACKAGE... is all that they take, libc included,
# since that of an older system is too old for them. Needs apt, dpkg-deb and patchelf; says what is missing, and fails.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
read -ra programs <<<"$2"
packages=(libc6 libgcc-s1 libstdc++6 libssl3t64 zlib1g libzstd1 "${@:3}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

cannot() { echo "no ${programs[*]##*/}: $*" >&2; exit 1; }

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
for program in "${programs[@]}"; do
  patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$folder/$program"
done
