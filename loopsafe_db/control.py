"""Texts that end transactions: what a block or a session has begun ends with it, and by no text in it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from loopsafe_db import lexer
from loopsafe_db.errors import TransactionError

if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCK, SESSION = "a block", "a session"  # what keeps a transaction
_HEAD = 1_000  # characters with the first words of a statement
_SHOWN = 100  # characters of a statement in an error
_MYSQL = ("mysql", "mariadb")
# What is PREPARED is another transaction, and behind TO stands a savepoint.
_ENDS = r"(?:COMMIT|ROLLBACK)\b(?! PREPARED\b)(?!(?: WORK| TRAN| TRANSACTION)? TO\b)|PREPARE TRANSACTION\b"
# Elsewhere END is that of a block, and a BEGIN does not commit what is open.
_BY_DIALECT = {
    **dict.fromkeys(("postgresql", "sqlite"), re.compile(rf"{_ENDS}|END\b|ABORT\b")),
    **dict.fromkeys(
        _MYSQL,
        re.compile(
            rf"{_ENDS}|BEGIN(?: WORK)?\Z|START TRANSACTION\b|SET\b.*(?<![ ,]@)\bAUTOCOMMIT\b"
        ),
    ),
}
_ELSEWHERE = re.compile(_ENDS)
# What MySQL commits before it does it, and after.
_COMMITS = re.compile(
    r"(?:CREATE|DROP) (?!(?:OR REPLACE )?TEMPORARY\b)|(?:ALTER|RENAME|TRUNCATE|GRANT|REVOKE|ANALYZE|CHECK|OPTIMIZE"
    r"|REPAIR|CACHE|FLUSH|RESET|LOAD INDEX|LOCK TABLE|LOCK TABLES|UNLOCK TABLES|INSTALL|UNINSTALL|SET PASSWORD|XA)\b"
)


def ends_transaction(statement: str, dialect: str) -> bool:
    """Tell whether a statement says that it ends the transaction it is sent in.

    Args:
        statement: As `lexer.statements` gives it.
        dialect: SQLAlchemy's name of it, with or without a driver: ``postgresql+asyncpg``.
    """
    return _BY_DIALECT.get(dialect.partition("+")[0], _ELSEWHERE).match(statement) is not None


def commits_unasked(statement: str, dialect: str) -> bool:
    """Tell whether the server commits before a statement by itself, as MySQL does before all DDL."""
    return dialect.partition("+")[0] in _MYSQL and _COMMITS.match(statement) is not None


def end_in(statements: Iterable[str], dialect: str) -> str:
    """Give the first of some statements that a block's transaction would end with; "" if there is none."""
    return next(
        (
            one
            for one in statements
            if ends_transaction(one, dialect) or commits_unasked(one, dialect)
        ),
        "",
    )


def refuse_end(statement: str, keeper: str) -> None:
    """Refuse a statement that would end a transaction.

    Args:
        statement: As `end_in` gives it: "" is none.
        keeper: What has begun the transaction.

    Raises:
        TransactionError: There is one.
    """
    if statement:
        raise TransactionError(
            f"{statement[:_SHOWN]!r} would end the transaction of {keeper}, and what comes after it would be in none; "
            "nothing was sent"
        )


def refuse_end_in_sql(sql: str, dialect: str, keeper: str) -> None:
    """Do so for SQL that was not compiled by us; what MySQL commits unasked is left to sessions."""
    if ";" in sql:
        refuse_end(_end_in_sql(sql, dialect, keeper), keeper)
    else:  # its beginning says it, and to read a long one to its end takes milliseconds
        refuse_end(_known_end(sql[:_HEAD], dialect, keeper), keeper)


def _end_in_sql(sql: str, dialect: str, keeper: str) -> str:
    found: Iterable[str] = lexer.statements_of(sql, dialect)
    if keeper == SESSION:
        found = (one for one in found if not commits_unasked(one, dialect))
    return end_in(found, dialect)


_known_end = lru_cache(1024)(_end_in_sql)
