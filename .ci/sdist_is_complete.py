"""Fail unless an sdist holds every file of the repository: ``sdist_is_complete.py dist/x.tar.gz``."""

import subprocess
import sys
import tarfile

with tarfile.open(sys.argv[1]) as archive:
    packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True)
tracked = set(listed.stdout.split("\0")) - {""}
missing = sorted(tracked - packed)
beyond = sorted(packed - tracked - {"PKG-INFO"})
print(
    f"{len(packed)} files in the sdist; missing: {missing or 'none'}; beyond git's: {beyond or 'none'}"
)
sys.exit(bool(missing or beyond))
