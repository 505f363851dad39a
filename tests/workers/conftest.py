"""A meeting made of silence, in any wrong format, and jobs as Conductor would deliver them."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loopsafe_db import configure
from reflector_workers.storage.schema import DEFINITION

if TYPE_CHECKING:
    from loopsafe_db import Database
    from loopsafe_db.testing.schemas import Schema
    from tests.workers.support import WriteWav


@pytest.fixture
def sample() -> Path:
    """The meeting that is committed with the example: three speakers, 29 seconds."""
    return Path(__file__).parents[2] / "examples" / "reflector_workers" / "sample_meeting"


@pytest.fixture
def write_wav(tmp_path: Path) -> WriteWav:
    """Write a silent WAV file below the test's folder; 16 kHz mono 16-bit if not told otherwise."""

    def write(
        name: str, *, rate: int = 16_000, channels: int = 1, width: int = 2, seconds: float = 1.0
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as wav:
            wav.setframerate(rate)
            wav.setnchannels(channels)
            wav.setsampwidth(width)
            wav.writeframes(bytes(int(seconds * rate) * channels * width))
        return path

    return write


@pytest.fixture
def short_meeting(sample: Path, tmp_path: Path) -> Path:
    """The first seven seconds of two of the sample's tracks: alice speaks, then bob."""
    folder = tmp_path / "short"
    folder.mkdir()
    for name in ("alice.wav", "bob.wav"):
        with wave.open(str(sample / name)) as whole, wave.open(str(folder / name), "wb") as part:
            part.setparams(whole.getparams())
            part.writeframes(whole.readframes(7 * whole.getframerate()))
    return folder


@pytest.fixture
def empty_database(postgres_url: str) -> None:
    """A database of this test's own behind `get_database`."""
    configure(url=postgres_url)


@pytest.fixture(scope="session")
def loopsafe_db_schema() -> Schema:
    """The example's tables, for the plugin's databases."""
    return DEFINITION


@pytest.fixture
def storage(loopsafe_db_committed: Database) -> None:
    """The example's tables behind `get_database`, in this process and in its children."""
