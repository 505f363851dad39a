"""What the guide says of SQLAlchemy 1.4: its lines are compiled there, compiled with 2, and run by loopsafe_db."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from loopsafe_db import Database
from tests.compatibility.environment import compile_with_sqlalchemy_1_4
from tests.compatibility.sqlalchemy_idioms import compiled, make, other, table
from tests.compatibility.test_compatibility import GUIDE

if TYPE_CHECKING:
    from pathlib import Path

KEPT = (
    "select(table)",
    "select(table.c.id, table.c.text).where(table.c.x == 1)",
    "sqlalchemy.sql.select(table.c.id).filter(condition).filter_by(text='x')",
    "table.select()",
    "table.select().where(table.c.id == 1).where(condition)",
    "table.select().where((table.c.id > 1) & ~table.c.text.like('a%'))",
    "table.select().where(and_(condition, or_(table.c.id == 1, not_(table.c.text == 'x'))))",
    "table.select().where(table.c.id.in_([1, 2]))",
    "table.select().where(table.c.id.notin_([1, 2]))",
    "table.select().where(table.c.id.in_([]))",
    "table.select().where(table.c.id.in_(select(other.c.note_id)))",
    "table.select().where(table.c.text.is_(None)).where(table.c.x.isnot(None))",
    "table.select().where(table.c.text.ilike('a%')).where(table.c.x.between(1, 2))",
    "table.select().where(table.c.text.contains('a')).where(table.c.text.startswith('b'))",
    "table.select().order_by(table.c.id.desc()).limit(5).offset(10)",
    "table.select().order_by(desc('id'), table.c.x.asc())",
    "table.select().where(table.c.id == bindparam('wanted')).params(wanted=1)",
    "table.select().with_for_update()",
    "table.select().distinct()",
    "table.select().where(table.c.made > datetime.datetime(2024, 1, 1))",
    "select(func.count()).select_from(table)",
    "select(func.count(table.c.id), func.max(table.c.x)).group_by(table.c.text)",
    "select(table.c.text).group_by(table.c.text).having(func.count() > 1)",
    "select(table.c.text.label('title'), literal('a').label('kind'))",
    "select(table.c.id, other.c.id.label('reader')).select_from(table.join(other))",
    "select(table.c.id).select_from(table.outerjoin(other, other.c.note_id == table.c.id))",
    "select(table.c.id).join(other, other.c.note_id == table.c.id)",
    "select(table.alias('a').c.id)",
    "select(select(table.c.id).where(condition).subquery('inner').c.id)",
    "select(select(table.c.id).cte('c').c.id)",
    "select(exists().where(table.c.id == 1))",
    "table.select().where(exists().where(other.c.note_id == table.c.id))",
    "union_all(select(table.c.id), select(other.c.id)).order_by('id')",
    "select(case({1: 'one'}, value=table.c.x, else_='more'))",
    "select(cast(table.c.x, String), extract('year', table.c.made), func.lower(table.c.text))",
    "select(func.row_number().over(partition_by=table.c.x, order_by=table.c.id))",
    "select(text('1 AS one')).select_from(table)",
    "text('SELECT * FROM notes WHERE id = :id').bindparams(id=1)",
    "table.insert().values(text='a', x=1)",
    "table.insert().values({'text': 'a'})",
    "table.insert().values([{'text': 'a'}, {'text': 'b'}])",
    "table.insert().values(text=func.lower('A'))",
    "table.insert().from_select(['x'], select(other.c.id))",
    "table.insert().values(text='a').returning(table.c.id, table.c.text)",
    "insert(table).values(x=1)",
    "update(table).where(condition).values(text='b')",
    "table.update().where(table.c.id == 1).values(x=table.c.x + 1)",
    "table.update().where(table.c.id == 1).values({table.c.text: 'c'})",
    "delete(table).where(condition)",
    "table.delete()",
    "table.delete().where(table.c.id == 1)",
    "dialect_insert(table).values(id=1).on_conflict_do_nothing(index_elements=['id'])",
    "dialect_insert(table).values(id=1)"
    ".on_conflict_do_update(index_elements=[table.c.id], set_={'text': 'x'})",
)


def guide_rows() -> list[tuple[list[str], str]]:
    """The lines of the guide's table: ways of 1.4 that are gone, and the one of 2."""
    section = GUIDE.read_text(encoding="utf-8").split("## From SQLAlchemy 1.4")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*`) \| `(.*)` \|$", section, re.MULTILINE)
    return [(re.findall(r"`(.*?)`", old), new) for old, new in rows]


CHANGED = [(old, new) for ways, new in guide_rows() for old in ways]
RUN = [*KEPT, *dict.fromkeys(new for _, new in CHANGED)]


@pytest.fixture(scope="module")
def on_1_4() -> dict[str, Any]:
    return compile_with_sqlalchemy_1_4([*RUN, *dict.fromkeys(old for old, _ in CHANGED)])


def test_the_guide_has_such_a_table() -> None:
    assert len(CHANGED) > 10


@pytest.mark.parametrize("idiom", KEPT)
def test_what_1_4_compiles_without_a_warning_means_the_same_now(
    idiom: str, on_1_4: dict[str, Any]
) -> None:
    was, now = on_1_4[idiom], compiled(idiom)

    assert was["postgresql"] == now["postgresql"]
    assert was["sqlite"] in (now["sqlite"], "raised CompileError")  # it had no RETURNING
    assert isinstance(now["sqlite"], list)
    assert was["warnings"] == []


@pytest.mark.parametrize(("old", "new"), CHANGED)
def test_the_guide_tells_what_to_write_for_what_is_gone(
    old: str, new: str, on_1_4: dict[str, Any]
) -> None:
    was, gone, now = on_1_4[old], compiled(old), compiled(new)

    assert was["warnings"], "1.4 says nothing"
    for dialect in ("postgresql", "sqlite"):
        assert "raised" in gone[dialect], "it still runs"
        assert was[dialect] == on_1_4[new][dialect] == now[dialect]


@pytest.mark.parametrize("idiom", RUN)
async def test_a_handle_runs_it(idiom: str, tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/test.db") as database:
        for one in (table, other):
            await database.execute(sa.schema.CreateTable(one))

        await database.fetch_all(make(idiom, "sqlite"))
