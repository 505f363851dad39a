"""Whether a recording is all there: what its format says of its length, beside what it holds."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

    from reflector_workers.audio import Extent

_TOLERANCE = 0.25  # seconds; encoders pad their first and last packets
_UNKNOWN = {0, 0xFFFF_FFFF}  # what a recorder writes that has not come to its end
_OGG_LARGEST_PAGE = 27 + 255 + 255 * 255
_OGG_LAST_PAGE = 4


def shortfall(path: Path, extent: Extent) -> str | None:
    """What the user should know of a recording that was cut off, or None.

    Some formats say nothing of their length (WebM as browsers record it, MP3, AAC): None, too.
    """
    kinds = extent.container.split(",")
    in_wav = "wav" in kinds
    declared = _declared_by_wav(path, extent.seconds) if in_wav else extent.declared
    if declared is not None and declared - extent.seconds > _TOLERANCE:
        return (
            f"is cut off: it ends after {extent.seconds:.2f} s, and its header says "
            f"{declared:.2f} s. The rest is missing"
        )
    if "ogg" in kinds and not _ogg_has_ended(path):
        return (
            f"is cut off: it ends after {extent.seconds:.2f} s without the mark of an end. "
            "Its recorder was killed, or the rest is missing"
        )
    return None


def _declared_by_wav(path: Path, seconds: float) -> float | None:
    """The header's length. FFmpeg cuts it down to what the file has, so the header is read here."""
    with path.open("rb") as file:
        there = os.fstat(file.fileno()).st_size
        declared, begins = _wav_data(file)
    present = there - begins
    if declared in _UNKNOWN or declared <= present:
        return None
    return seconds * declared / present


def _wav_data(file: BufferedReader) -> tuple[int, int]:
    """How many bytes of samples a RIFF or RF64 header speaks of, and where they begin."""
    file.seek(12)
    long_size = 0
    while len(head := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", head)
        if kind == b"data":
            return (size if size not in _UNKNOWN else long_size), file.tell()
        if kind == b"ds64":
            long_size = struct.unpack("<8xQ", file.read(16))[0]
            size -= 16
        file.seek(size + size % 2, os.SEEK_CUR)
    return 0, file.tell()


def _ogg_has_ended(path: Path) -> bool:
    """Whether the file's last page says that it is the last."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _OGG_LARGEST_PAGE))
        tail = file.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & _OGG_LAST_PAGE)
