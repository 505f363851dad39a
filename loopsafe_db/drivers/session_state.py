"""What a text may change of its session: settings, locks, temporary tables, and whatever else outlives a transaction.

A look at the text, not a parser. Where it is in doubt it says yes: that costs a round trip, and no would cost the next
user's peace. What a function of the user's does cannot be seen.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from loopsafe_db import lexer

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONG = 4_000  # characters; longer ones are hardly sent twice, and would be kept


class Touched:
    """What the next user of a session must not meet: bits of an int, for an enum's take a microsecond each.

    Attributes:
        SETTINGS: Whatever a reset undoes: settings, roles, locks, channels, cursors, temporary tables.
        STATEMENTS: Statements that were prepared by text, beside those of the driver.
        BEYOND: What no reset undoes: a library that was loaded, a connection to another server.
        RAW: Whatever can be done with the driver's own connection.
        USED: Nothing that is known; but whoever wants to reset each connection is asked.
        LAST: Nothing that is known; but it is not to have another user.
        PARAMETER: What ``RESET ALL`` undoes alone: a parameter that ``SET name = value`` has set, and no role.
    """

    NOTHING = 0
    SETTINGS = 1
    STATEMENTS = 2
    BEYOND = 4
    RAW = 8
    USED = 16
    PARAMETER = 32
    LAST = 64


_TEMPORARY = r"CREATE (?:OR REPLACE )?(?:GLOBAL |LOCAL )?TEMP(?:ORARY)?\b"


def _pattern(**kinds: str) -> re.Pattern[str]:
    """Make one expression of several, each under the name of what it finds; for a statement as the lexer gives it."""
    return re.compile("|".join(f"(?P<{name}>{kind})" for name, kind in kinds.items()))


_POSTGRESQL = _pattern(
    PARAMETER=r"\ASET (?:SESSION )?(?!SESSION|ROLE|SEED\b)[A-Z_][\w.]* ?(?:=|TO\b)",
    BEYOND=r"\ALOAD\b|\b(?:DBLINK_CONNECT|PG_REPLICATION_ORIGIN_SESSION_SETUP)|\b(?:SETSEED|PG_BACKUP_START)\b"
    r"|\ASET (?:SESSION )?SEED\b|\bPG_(?:CREATE|COPY)_(?:LOGICAL|PHYSICAL)_REPLICATION_SLOT\b",
    STATEMENTS=r"\A(?:PREPARE(?! TRANSACTION\b)|DO|CALL)\b",
    SETTINGS=rf"\A(?:SET(?! (?:LOCAL|CONSTRAINTS|TRANSACTION)\b)|RESET|LISTEN|UNLISTEN|DISCARD|DEALLOCATE|{_TEMPORARY})"
    rf"|\AEXPLAIN\b.*\b{_TEMPORARY}|\bWITH HOLD\b|\bINTO (?:LOCAL |GLOBAL )?TEMP(?:ORARY)?\b|\bPG_TEMP"
    r"|\bPG_(?:TRY_)?ADVISORY_LOCK(?:_SHARED)?\b|\bSET_LIMIT\b"
    r'|\bSET_CONFIG\b(?!"? ?\([^(),]+,[^(),]+, ?TRUE ?\))'
    r'|\bUPDATE (?:ONLY )?(?:"?PG_CATALOG"? ?\. ?)?"?PG_SETTINGS\b',
)
# Of SQLite's pragmas these belong to the file, or only tell something.
_TELLS = (
    r"(?:TABLE_X?INFO|TABLE_LIST|INDEX_X?INFO|INDEX_LIST|FOREIGN_KEY_LIST|FOREIGN_KEY_CHECK|INTEGRITY_CHECK|QUICK_CHECK"
    r"|USER_VERSION|APPLICATION_ID|WAL_CHECKPOINT|OPTIMIZE|INCREMENTAL_VACUUM|SCHEMA_VERSION|ENCODING)"
)
_SQLITE = _pattern(
    SETTINGS=rf"\A(?:ATTACH|DETACH|{_TEMPORARY}|PRAGMA(?! (?:\w+ ?\. ?)?(?:{_TELLS}\b|\w+\Z)))"
    r"|\bLOAD_EXTENSION\b|\b(?:TABLE|VIEW|TRIGGER|EXISTS|INTO) ?(?:[\"\[`]?TEMP[\"\]`]?|'') ?\."
)
# What has no reset that we know of: such a connection is closed.
_CHANGES = (
    r"(?:SET(?! STATEMENT\b)|USE|LOCK|BACKUP|PREPARE|CALL|HANDLER|FLUSH|DO|EXECUTE|EXEC|DECLARE|BEGIN NOT|XA"
    rf"|GET (?:CURRENT |STACKED )?DIAGNOSTICS|IF|CASE|LOOP|WHILE|REPEAT|FOR|ALTER SESSION|{_TEMPORARY}"
    r"|CREATE (?:PRIVATE TEMP|TABLE #))"
)
_VARIABLE = r"@(?:[\w.$]+|`[^`]*`|'')"  # the lexer leaves nothing of what is in other quotes
_OTHER = _pattern(
    BEYOND=rf"\A(?:SET STATEMENT\b.*? FOR )?{_CHANGES}"
    rf"|\bGET_LOCK\b|{_VARIABLE} ?:=|\bINTO [@#]|\bLAST_INSERT_ID ?\( ?[^ )]|\ALOAD (?:DATA|XML)\b.*[(,] ?@"
)
_PATTERNS = {"postgresql": _POSTGRESQL, "sqlite": _SQLITE}


def touched_by(statements: Iterable[str], dialect: str) -> int:
    """Tell what statements may change of their session.

    Args:
        statements: As `lexer.statements` gives them.
        dialect: SQLAlchemy's name of it, with or without a driver: ``postgresql+asyncpg``.
    """
    pattern = _PATTERNS.get(dialect.partition("+")[0], _OTHER)
    touched = Touched.NOTHING
    for statement in statements:
        for found in pattern.finditer(statement):
            touched |= getattr(Touched, found.lastgroup or "")
    return touched


def touched_by_sql(sql: str, dialect: str) -> int:
    """Tell what SQL may change of its session that SQLAlchemy has made, or passes on."""
    return _read(sql, dialect) if len(sql) > _LONG else _known(sql, dialect)


def _read(sql: str, dialect: str) -> int:
    return touched_by(lexer.statements(lexer.tokens(sql, dialect)), dialect)


_known = lru_cache(maxsize=1024)(_read)
