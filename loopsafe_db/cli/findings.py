"""What a check has found: a code, the evidence, the cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]

LOOK_SECONDS = 0.05  # between two looks at who polls: the last poller wins


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: Names the row in ``docs/reference/command.md``.
        level: ``ok`` is a fact; the others make the command end with exit code 1.
        what: What is so.
        evidence: Where it was seen.
        cure: What to do.
    """

    code: str
    level: Level
    what: str
    evidence: str = ""
    cure: str = ""

    def __str__(self) -> str:
        lines = [f"{self.code} {self.level}: {self.what}"]
        lines += [f"  seen: {self.evidence}"] if self.evidence else []
        lines += [f"  cure: {self.cure}"] if self.cure else []
        return "\n".join(lines)
