"""What a commit does beside storing, done where nothing is stored: for `PinnedConnection`."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from loopsafe_db.errors import TransactionError, TransactionOptionsError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from loopsafe_db.drivers.base import Driver, DriverTransaction

_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
_READ_ONLY = {  # PostgreSQL undoes that with the savepoint that it was said in
    "postgresql": ("SET TRANSACTION READ ONLY", None),
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
}
_CAN_BE_DEFERRED = {
    "postgresql": "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE condeferrable)",
    "sqlite": (
        "SELECT (SELECT foreign_keys FROM pragma_foreign_keys) AND (EXISTS (SELECT 1 FROM sqlite_master "
        "WHERE sql LIKE '%DEFERRED%') OR (SELECT defer_foreign_keys FROM pragma_defer_foreign_keys))"
    ),
}
# As after a commit, those are deferred again that were made so. In one message, and without names that may be gone.
_CHECK_POSTGRESQL = """
DO $$
DECLARE
    names text;
BEGIN
    SET CONSTRAINTS ALL IMMEDIATE;
    SELECT pg_catalog.string_agg(DISTINCT pg_catalog.format('%I.%I', nspname, conname), ', ') INTO names
    FROM pg_catalog.pg_constraint AS c JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) connamespace
    WHERE condeferred AND NOT pg_catalog.pg_is_other_temp_schema(n.oid)
        AND pg_catalog.has_schema_privilege(n.oid, 'USAGE');
    IF names IS NOT NULL THEN
        EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED';
    END IF;
END $$
"""


class ReadOnlyTransaction:
    """A savepoint in which nothing can be written."""

    def __init__(
        self, driver: Driver, raw: Any, dialect: str, savepoint: DriverTransaction
    ) -> None:
        if dialect not in _READ_ONLY:
            raise TransactionError(
                f"{dialect} has no read-only savepoints, and under force_rollback a transaction is one"
            )
        self._driver, self._raw, self._savepoint = driver, raw, savepoint
        self._begin, self._end = _READ_ONLY[dialect]

    async def start(self) -> None:
        """Set it."""
        await self._savepoint.start()
        await self._say(self._begin)

    async def commit(self) -> None:
        """Release it."""
        await self._savepoint.commit()
        await self.leave()

    async def rollback(self) -> None:
        """Go back to it."""
        await self._savepoint.rollback()
        await self.leave()

    def renew(self) -> Awaitable[None]:
        """Release it and set it again."""
        return self._savepoint.renew()

    async def leave(self) -> None:
        """Have writes allowed again."""
        if self._end is not None:
            await self._say(self._end)

    async def _say(self, sql: str) -> None:
        await self._driver.execute(self._raw, sql, (), None)


def refuse_stricter(level: str, present: str | None) -> None:
    """Refuse an isolation level that the transaction around everything does not have.

    Raises:
        TransactionOptionsError: It is less isolated.
    """
    wanted = level.replace("_", " ").upper()
    known = (present or "").upper()
    if wanted == known or (
        {wanted, known} <= {*_LEVELS} and _LEVELS.index(wanted) <= _LEVELS.index(known)
    ):
        return
    raise TransactionOptionsError(
        f"isolation level {wanted} is not that of the one transaction that undoes everything here, {known}: "
        "test this with real commits (the fixture loopsafe_db_committed)"
    )


async def can_defer(driver: Driver, raw: Any, dialect: str) -> bool:
    """Tell whether there are constraints that may be checked as late as a commit."""
    query = _CAN_BE_DEFERRED.get(dialect)
    return query is not None and bool(await driver.execute(raw, query, (), None))


async def check_deferred(driver: Driver, raw: Any, dialect: str) -> None:
    """Check what a commit would check, and raise what it would raise."""
    if dialect == "postgresql":
        await driver.execute(raw, _CHECK_POSTGRESQL, (), None)
    else:
        if await driver.fetch_one(raw, "PRAGMA foreign_key_check", (), None) is not None:
            raise sqlite3.IntegrityError("FOREIGN KEY constraint failed")
        await driver.execute(raw, "PRAGMA defer_foreign_keys = OFF", (), None)
