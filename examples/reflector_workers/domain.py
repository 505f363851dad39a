"""What the jobs speak about: stretches of speech, speaker turns, and what crosses JSON.

Everything is frozen. Conductor turns every input and output into JSON, so a worker receives plain
dictionaries; `loopsafe_db.integrations.conductor` makes domain objects of them again, or says which field is wrong.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class MeetingError(ValueError):
    """The meeting that was given cannot be worked on; the text says what, where and the cure."""


class Value(BaseModel):
    """A frozen value that refuses unknown fields, NaN and infinity (Conductor cannot send them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Segment(Value):
    """A stretch of speech on one track.

    Attributes:
        start: Seconds from the beginning of the recording.
        end: Seconds from the beginning of the recording, later than `start`.
    """

    start: float = Field(ge=0)
    end: float

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"a segment ends ({self.end}) after it starts ({self.start})")
        return self

    @property
    def duration(self) -> float:
        return self.end - self.start


class Turn(Segment):
    """A stretch of speech with the name of who speaks."""

    speaker: str = Field(min_length=1)


class Meeting(Value):
    """A meeting, as the database knows it; its documents carry its name."""

    id: int
    name: str
    folder: str


class Track(Value):
    """One participant's recording, as the database knows it.

    Attributes:
        starts_at: Seconds from the meeting's beginning.
        duration: Seconds.
        damaged: Packets that could not be decoded; 0 before it was heard.
    """

    id: int
    position: int
    speaker: str
    path: str
    starts_at: float
    duration: float
    damaged: int


class TrackSpeech(Value):
    """Everything that one participant said."""

    speaker: str
    segments: tuple[Segment, ...]


class DetectedTrack(Value):
    """What a ``detect_speech`` job hands on: ids only, the segments are in the database."""

    model_config = ConfigDict(extra="ignore")  # a newer worker may say more

    track_id: int
    position: int
    segment_count: int


class Output(Value):
    """A finished document of a meeting: its RTTM or a picture."""

    kind: str
    content: str


def to_json(value: Value) -> dict[str, object]:
    """What crosses JSON: dictionaries, lists, texts and numbers."""
    return value.model_dump(mode="json")
