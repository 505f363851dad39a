"""What a storm has been told: which rows must be there in the end, which must not, and what was wrong meanwhile."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

_serials = itertools.count(1)  # `next` of it is atomic


@dataclass
class Ledger:
    """Tokens and how many rows each may have; shared by the threads of one process.

    Attributes:
        operations: How many operations have run.
        interrupted: How many of them were cancelled, or ended by a limit.
        struck: How many have failed because a connection was ended.
        told: Token -> the operation, and the row counts that are right.
        wrong: Kind of fault -> what happened.
    """

    operations: int = 0
    interrupted: int = 0
    struck: int = 0
    told: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def token(self, operation: str, rows: int = 1) -> int:
        """Give a token of which all rows or none may be there: nothing was told yet."""
        token = os.getpid() << 32 | next(_serials)
        self.told[token] = operation, (0, rows)
        return token

    def kept(self, token: int) -> None:
        """Note that its rows were reported as written."""
        operation, rows = self.told[token]
        self.told[token] = operation, rows[-1:]

    def undone(self, token: int) -> None:
        """Note that its rows were reported as rolled back, or refused."""
        self.told[token] = self.told[token][0], (0,)

    def undone_unless_told(self, token: int) -> None:
        """Note that its rows cannot be there, unless it was reported what became of them."""
        if self.told[token][1][0] == 0:
            self.undone(token)

    def complain(self, kind: str, what: str) -> None:
        """Note what must not happen."""
        self.wrong.append((kind, what[:400]))

    def compare(self, found: Counter[int], *, all_undone: bool) -> None:
        """Look at the rows of the database: lost ones, and ones that were kept wrongly."""
        for token, (operation, right) in self.told.items():
            rows = found[token]
            if all_undone and rows:
                self.complain("kept", f"{operation}: {rows} rows are left after the rollback")
            elif not all_undone and rows not in right:
                kind = "lost" if rows < right[0] else "kept"
                self.complain(kind, f"{operation}: {rows} rows, right are {right}")
        if strangers := found.keys() - self.told.keys():
            self.complain("kept", f"{len(strangers)} rows that nobody has written")

    def save(self, path: Path) -> None:
        """Write it down, for the parent of a forked child."""
        told = [(token, *entry) for token, entry in self.told.items()]
        counts = self.operations, self.interrupted, self.struck
        path.write_text(json.dumps([*counts, told, self.wrong]))

    def add(self, path: Path) -> None:
        """Take a child's ledger in."""
        operations, interrupted, struck, told, wrong = json.loads(path.read_text())
        self.operations += operations
        self.interrupted += interrupted
        self.struck += struck
        self.told |= {token: (operation, tuple(rows)) for token, operation, rows in told}
        self.wrong += [(kind, f"in a child: {what}") for kind, what in wrong]
