"""Which process this is, told without a system call: each query asks, and a fork in C calls none of Python's hooks.

A byte is kept in a page that Linux wipes in a forked child. BoringSSL looks for forks in the same way.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_WIPE_ON_FORK = 18  # MADV_WIPEONFORK, since Linux 4.14: mmap has no name for it


def make_page() -> mmap.mmap | None:
    """Make a page that is wiped at a fork; None where the system does not promise that."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            page.madvise(-1)
        except OSError:
            page.madvise(_WIPE_ON_FORK)
            return page
    except (AttributeError, OSError):
        pass
    return None  # it knows no such advice, or takes any without a look at it


def ask(page: mmap.mmap | None) -> Callable[[], int]:
    """Give what tells the process' id: a third of the time of `os.getpid` where there is such a page."""
    if page is None:
        return os.getpid
    pid = 0

    def getpid() -> int:
        """Give the id of this process."""
        nonlocal pid
        if not page[0]:
            pid = os.getpid()
            page[0] = 1
        return pid

    return getpid


getpid = ask(make_page())
