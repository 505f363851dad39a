"""What a process occupies: memory, descriptors, threads, event loops."""

from __future__ import annotations

import asyncio
import gc
import re
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Occupied:
    """What this process has, all rubbish collected."""

    rss_bytes: int
    descriptors: int
    threads: int
    loops: int

    @classmethod
    def now(cls) -> Occupied:
        gc.collect()
        process = psutil.Process()
        loops = sum(issubclass(type(item), asyncio.AbstractEventLoop) for item in gc.get_objects())
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads(), loops)

    def growth_since(self, before: Occupied) -> dict[str, float]:
        then = asdict(before)
        return {name: value - then[name] for name, value in asdict(self).items()}


def forget_peak() -> int:
    """Begin a new peak of resident memory, where the system can; the bytes resident now."""
    gc.collect()
    if _RESET.exists():
        _RESET.write_text("5")
        return peak_bytes()
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The most that was resident since `forget_peak`; elsewhere than on Linux, since the start."""
    if _STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        assert found is not None
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
