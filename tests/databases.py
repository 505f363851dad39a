"""Empty databases for tests. One that is as good as new after a test is the next test's, under another name.

``CREATE DATABASE`` copies some 300 files, and the first session builds the caches of its catalogue: together ten
times what it takes to clean up after a test.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from sqlalchemy import make_url

if TYPE_CHECKING:
    from loopsafe_db.testing.servers import GivenPostgres

# What sessions leave goes with them; what is in `public` goes with it.
END_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
EMPTY_PUBLIC = """
    DROP SCHEMA public CASCADE;
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
    SELECT pg_stat_reset()
"""
# The rest would show here: there is more, or a later transaction has changed something. A session that has used
# temporary tables leaves a schema for them, empty.
COMPARED = (
    *("class", "proc", "type", "extension", "event_trigger", "publication", "subscription"),
    *("cast", "collation", "language", "foreign_server", "default_acl", "largeobject_metadata"),
)
FINGERPRINT = f"""
    SELECT (datallowconn, datconnlimit, datacl, datdba)::text,
        (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = pg_database.oid),
        (SELECT count(*) FROM pg_prepared_xacts WHERE database = datname),
        (SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'),
        {", ".join(f"(SELECT (count(*), max(xmin::text::bigint))::text FROM pg_{each})" for each in COMPARED)}
    FROM pg_database WHERE datname = current_database()
"""


class Databases:
    """The databases of one process that runs tests."""

    def __init__(self, server: GivenPostgres) -> None:
        self._server, self._pid = server, os.getpid()
        self._free: list[str] = []
        self._new: object = None

    def take(self) -> str:
        """Give the URL of an empty database, by a name that nobody has used before."""
        while self._free:
            old, name = self._free.pop(), self._server.new_name()
            rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
            try:
                with psycopg.connect(self._server.url, autocommit=True) as connection:
                    connection.execute(rename.format(sql.Identifier(old), sql.Identifier(name)))
            except psycopg.errors.ObjectInUse:  # somebody has come back
                self._server.drop_database(old)
            else:
                return self._server.database_url(name)
        return self._server.create_database()

    def give_back(self, url: str) -> None:
        """Clean it; drop it if something is left. A forked child leaves its parent's alone."""
        if os.getpid() != self._pid:
            return
        name = make_url(url).database or ""
        try:
            is_as_new = self._clean(url)
        except psycopg.Error:
            is_as_new = False
        if is_as_new:
            self._free.append(name)
        else:
            self._server.drop_database(name)

    def close(self) -> None:
        """Drop what is left."""
        if os.getpid() == self._pid:
            while self._free:
                self._server.drop_database(self._free.pop())

    def _clean(self, url: str) -> bool:
        with psycopg.connect(url, autocommit=True) as connection:
            ended = all(row[0] for row in connection.execute(END_SESSIONS))
            connection.execute(EMPTY_PUBLIC)
            found = connection.execute(FINGERPRINT).fetchone()
        if self._new is None:
            self._new = self._look_at_a_new_one()
        return ended and found == self._new

    def _look_at_a_new_one(self) -> object:
        url = self._server.create_database()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(EMPTY_PUBLIC)
            found = connection.execute(FINGERPRINT).fetchone()
        self._free.append(make_url(url).database or "")
        return found
