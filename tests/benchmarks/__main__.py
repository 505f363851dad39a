"""``python -m tests.benchmarks``: measure, print, write the page. ``--help`` lists the options."""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loopsafe_db.testing.postgres import EmbeddedPostgres
from tests.benchmarks.affinity import postmaster_of
from tests.benchmarks.cases import ALL, Case
from tests.benchmarks.children import ROOT
from tests.benchmarks.environments import machine, peers_python, server_version
from tests.benchmarks.fixtures import compare, section
from tests.benchmarks.progress import shown
from tests.benchmarks.report import Report
from tests.benchmarks.rounds import Plan, Result, run_case

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCS = ROOT / "docs" / "reference"
ROUNDS, QUICK_ROUNDS = 21, 1
PEER_MODULES = ("encode_databases", "dymmond_databasez")


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        tests: How many tests each fixture of a database has.
        output: Where page and plot go; None: nowhere.
    """

    cases: Sequence[Case]
    rounds: int
    quick: bool
    tests: int
    output: Path | None
    command: str


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; leaves with a message if it will not do."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: the figures mean nothing"
    )
    parser.add_argument("--only", metavar="NAME", action="append", choices=[c.name for c in ALL],
                        help="one case (repeatable): " + ", ".join(c.name for c in ALL))  # fmt: skip
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--no-docs", action="store_true", help="do not write docs/reference")
    parser.add_argument("--output", type=Path, help="write page and plot into this folder instead")
    given = parser.parse_args(arguments)
    partial = given.quick or given.only or given.no_docs  # a part must not replace the whole
    return Options(
        [case for case in ALL if not given.only or case.name in given.only],
        given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS),
        given.quick,
        5 if given.quick else 200,
        given.output or (None if partial else DOCS),
        " ".join(["make bench", *([f'ARGS="{" ".join(arguments)}"'] if arguments else [])]),
    )


def run(options: Options, url: str) -> Report:
    """Run the cases; leaves nothing on the server but a few tables."""
    pythons = dict.fromkeys(PEER_MODULES, None if options.quick else _peers(options.cases))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"BENCH_URL": url, "BENCH_SQLITE": f"{folder}/bench.db"}
        if options.quick:
            settings["BENCH_QUICK"] = "1"
        postmaster = None if options.quick else postmaster_of(url)
        python = Path(sys.executable)
        plan = Plan(options.rounds, options.quick, python, pythons, settings, postmaster)
        with shown() as progress:
            results = [run_case(case, plan, progress) for case in options.cases]
        return Report(
            results,
            options.command,
            f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
            options.rounds,
            {**machine(), "PostgreSQL": server_version(url), **_versions(results)},
            "" if len(options.cases) < len(ALL) else section(compare(url, options.tests)),
        )


def _peers(cases: Sequence[Case]) -> Path | None:
    modules = {contender.module for case in cases for contender in case.contenders}
    return peers_python() if modules & set(PEER_MODULES) else None


def _versions(results: Sequence[Result]) -> dict[str, str]:
    """By package; the peers have a SQLAlchemy of their own, so versions are those of loopsafe_db first."""
    found: dict[str, str] = {}
    for result in results:
        for package, version in result.versions.items():
            found.setdefault(package, version)
    return dict(sorted(found.items()))


def main(arguments: Sequence[str]) -> int:
    """Run, print, write; 1 if loopsafe_db failed or was wrong anywhere."""
    options = parse(arguments)
    with EmbeddedPostgres(max_connections=200) as server:
        report = run(options, server.url)
    print(report.text())
    if options.output is not None:
        print(f"\nwritten: {report.write(options.output).name}")
    return 0 if all(result.is_right() for result in report.results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
