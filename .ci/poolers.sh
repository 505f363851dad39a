#!/usr/bin/env bash
# A current PgBouncer and pgpool beside the system, from Debian's unstable archive: poolers.sh FOLDER.
set -euo pipefail
packages=(
  pgbouncer libevent-2.1-7t64 libcares2 libsystemd0 libcap2
  pgpool2 libpgpoolpcp3 libpq5 libmemcached11t64 libhashkit2t64 libcrypt1
  libldap2 libsasl2-2 libpam0g libaudit1 libcap-ng0
  libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1
)
"$(dirname "${BASH_SOURCE[0]}")/from_sid.sh" "$1" 'usr/sbin/pgbouncer usr/sbin/pgpool' "${packages[@]}"
for program in pgbouncer pgpool; do "$1/usr/sbin/$program" --version; done
