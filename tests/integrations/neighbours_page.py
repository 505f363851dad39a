"""The tables of ``docs/reference/neighbours.md``, read."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.docs.test_docs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Row:
    """A row of the table of neighbours."""

    name: str
    processes: str
    loop: str
    connections: str
    exits: str
    to_write: str
    tested_with: str

    def about(self, column: str, flavour: str) -> str:
        """The part of a cell that ends with a flavour in brackets, or all of it."""
        parts: list[str] = getattr(self, column).split(", ")
        return next((part for part in parts if flavour and part.endswith(f"({flavour})")), parts[0])

    @property
    def exit_handlers(self) -> set[bool]:
        """Whether the processes run what was given to ``atexit``."""
        told = {
            "run": {True},
            "not run": {False},
            "not always run": {True, False},
            "run from CPython 3.13 on": {sys.version_info >= (3, 13)},
            "run from CPython 3.14 on": {sys.version_info >= (3, 14)},
        }
        return told[self.exits.partition(" (")[0]]


def row_of(name: str) -> Row:
    """The only row whose first cell begins so, links apart."""
    (found,) = (row for row in rows() if len(row) == 7 and row[0].startswith(name))
    return Row(*found)


def rows() -> Iterator[list[str]]:
    """The cells of each row of both tables; the text of a link in its place."""
    page = (ROOT / "docs/reference/neighbours.md").read_text(encoding="utf-8")
    for line in re.sub(r"\[(.*?)\]\(.*?\)", r"\1", page).splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0].strip("-"):  # the headings have no name
            yield cells


@dataclass(frozen=True)
class NamedVersion:
    """A version in the last column.

    Attributes:
        package: Its name, of the cell or of the row.
        version: As many numbers of it as the page tells.
        by_hand: Whether no test is said to run it.
    """

    package: str
    version: str
    by_hand: bool

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


DISTRIBUTIONS = {"uWSGI": "pyuwsgi"}  # where the page names the program, and pip something else


def named_versions() -> list[NamedVersion]:
    """Every version of a package that the page tells, once; interpreters are none."""
    return list(dict.fromkeys(named for row in rows() for named in _named(row[0], row[-1])))


def _named(name: str, cell: str) -> Iterator[NamedVersion]:
    for part in re.split(r", | and |; ", cell):
        match = re.fullmatch(r"(?:(\S+) )?(\d+(?:\.\d+)*)(?: by hand)?", part)
        if match and match[1] != "CPython":
            package = match[1] or re.split(r"[ ,]", name)[0]
            yield NamedVersion(DISTRIBUTIONS.get(package, package), match[2], "by hand" in cell)
