"""The benchmark runs: in each of its cases loopsafe_db gives right answers. No figure is asserted."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from tests.benchmarks.__main__ import DOCS, parse, run
from tests.benchmarks.cases import ALL, HANDLE, OURS, Case, Contender
from tests.benchmarks.figures import Goal, Spread, Track, ratio
from tests.benchmarks.fixtures import NOTHING, STYLES, compare, section
from tests.benchmarks.harness import Outcome
from tests.benchmarks.rounds import Plan, Result, run_case

if TYPE_CHECKING:
    from loopsafe_db.testing.servers import PostgresServer
    from tests.benchmarks.report import Report

PACKAGES = {
    "run-psycopg": "psycopg",
    "waiting-psycopg": "psycopg_pool",
    "run-uvloop": "uvloop",
    "loop-uvloop": "uvloop",
}


class NobodyLooks:
    """No progress is shown."""

    def begin(self, title: str, steps: int) -> None: ...
    def step(self) -> None: ...


def quick_run(url: str, *cases: str) -> Report:
    only = [part for case in cases for part in ("--only", case)]
    return run(parse(["--quick", "--rounds", "2", *only]), url)


@pytest.mark.parametrize("case", [case.name for case in ALL])
def test_loopsafe_db_gives_right_answers_in_every_case(case: str, postgres_url: str) -> None:
    if case in PACKAGES:
        pytest.importorskip(PACKAGES[case])

    (result,) = quick_run(postgres_url, case).results

    assert result.is_right(), result.complaints()
    assert all(line.what in {f.what for f in result.figures} for line in result.case.facts)


@pytest.mark.timeout(300)
def test_every_suite_on_a_database_runs(postgres_server: PostgresServer) -> None:
    text = section(compare(postgres_server.url, 5))
    assert all(f"| {style.title} |" in text for style in STYLES if style.title != NOTHING)


def test_a_report_has_every_case_and_a_plot(postgres_url: str, tmp_path: Path) -> None:
    report = quick_run(postgres_url, "run", "handle", "timeline")

    page = report.write(tmp_path / "reports")

    text = page.read_text(encoding="utf-8")
    assert all(result.case.title in text for result in report.results)
    assert "PostgreSQL" in text
    assert "$" not in text.replace("$ make bench", "")  # nothing was left to fill in
    plot = ElementTree.parse(page.with_name("benchmarks.svg"))
    assert OURS in [element.text for element in plot.iter("{http://www.w3.org/2000/svg}text")]


def test_only_a_whole_run_writes_the_docs() -> None:
    assert parse([]).output == DOCS
    for partial in (["--quick"], ["--only", "run"], ["--no-docs"]):
        assert parse(partial).output is None
    assert parse(["--quick", "--output", "here"]).output == Path("here")


def test_a_contender_that_cannot_take_part_is_reported(postgres_url: str) -> None:
    absent = Contender("absent", "bare_asyncpg", "no such case", 1)
    elsewhere = Contender("elsewhere", "encode_databases", "loop", 1)
    case = dataclasses.replace(HANDLE, contenders=(*HANDLE.contenders, absent, elsewhere))

    result = run_case(case, plan(postgres_url), NobodyLooks())

    assert result.is_right()
    assert [complaint.partition(" did")[0] for complaint in result.complaints()] == [
        "absent",
        "elsewhere",
    ]


def test_a_contender_that_dies_is_reported_with_its_last_words(postgres_url: str) -> None:
    interpreter_ends = Contender(OURS, "loopsafe", "handle", 1)
    case = Case("death", "Death", (interpreter_ends,))
    settings = {"BENCH_URL": postgres_url, "PYTHONHOME": "/nowhere"}  # no interpreter starts so

    result = run_case(case, plan(postgres_url, settings), NobodyLooks())

    assert not result.is_right()
    assert "ended with status 1" in " ".join(result.complaints())


def plan(url: str, settings: dict[str, str] | None = None) -> Plan:
    return Plan(
        rounds=1,
        quick=True,
        python=Path(sys.executable),
        pythons={"encode_databases": None},
        settings=settings or {"BENCH_URL": url},
    )


def test_ratios_are_taken_within_each_round() -> None:
    ours, baseline = Track(10), Track(10)
    for number, slowness in enumerate([1.0, 50.0, 1.0]):  # the machine's, not ours
        baseline.add(number, Outcome(1.0 * slowness, ok=True))
        ours.add(number, Outcome(2.0 * slowness, ok=True))

    assert ratio(ours, [baseline]) == Spread(2.0, 2.0, 2.0)
    assert ratio(ours, [baseline, baseline]) == Spread(1.0, 1.0, 1.0)
    assert ratio(ours, [Track(10)]) is None


def test_a_wrong_answer_is_not_forgotten() -> None:
    track = Track(1)
    track.add(0, Outcome(1.0, ok=False))
    track.add(1, Outcome(1.0, ok=True))

    assert not Result(HANDLE, {OURS: track}).is_right()


def test_a_verdict_names_the_better_of_two_goals() -> None:
    at_most, at_least = Goal(2.0, 1.5), Goal(15, 30, "at least")

    assert [at_most.verdict(value) for value in (1.5, 1.6, 2.1)] == ["aim met", "reached", "missed"]
    assert [at_least.verdict(value) for value in (30, 15, 14)] == ["aim met", "reached", "missed"]
