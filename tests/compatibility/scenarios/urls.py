"""`DatabaseURL`, and what a handle may be made of."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import asyncpg
import sqlalchemy as sa

from tests.compatibility.world import World, attempt, attempt_call, only, plain

FULL = "postgresql+asyncpg://ann:p%40ss@localhost:123/mydatabase?min_size=2&ssl=true"
PARTS = (
    "scheme",
    "dialect",
    "driver",
    "username",
    "password",
    "hostname",
    "port",
    "database",
    "options",
    "netloc",
    "userinfo",
)


async def url_has_its_parts(world: World) -> Any:
    url = world.DatabaseURL(FULL)
    return {part: getattr(url, part) for part in PARTS}


async def url_parts_of_sqlite(world: World) -> Any:
    relative, absolute = map(world.DatabaseURL, ("sqlite:///my.db", "sqlite:////tmp/my.db?cache=1"))
    return [[plain(getattr(url, part)) for part in PARTS] for url in (relative, absolute)]


async def url_of_a_unix_socket_names_its_host_in_the_query(world: World) -> Any:
    url = world.DatabaseURL("postgresql:///mydatabase?host=/var/run/postgresql")
    return url.hostname, url.database, url.options


async def url_components_are_those_of_urlsplit(world: World) -> Any:
    components = world.DatabaseURL(FULL).components
    return type(components).__name__, components.path, components.query, components.hostname


async def url_as_text_shows_the_password(world: World) -> Any:
    return str(world.DatabaseURL(FULL)), f"{world.DatabaseURL(FULL)}"


async def url_repr_masks_the_password(world: World) -> Any:
    texts = "postgresql://u:p@localhost/name", "postgresql://u@localhost/name", "sqlite:///my.db"
    return [repr(world.DatabaseURL(text)) for text in texts]


async def url_obscure_password_is_a_text(world: World) -> Any:
    return world.DatabaseURL(FULL).obscure_password


async def url_equals_its_text_and_its_copy(world: World) -> Any:
    url = world.DatabaseURL(FULL)
    return (
        url == FULL,
        url == world.DatabaseURL(FULL),
        world.DatabaseURL(url) == url,
        url == "postgresql://elsewhere/x",
    )


async def url_is_made_of_text_or_url_only(world: World) -> Any:
    return [attempt_call(world.DatabaseURL, given) for given in (("postgresql", "name"), None, 5)]


async def url_replaces_each_part(world: World) -> Any:
    url = world.DatabaseURL(FULL)
    changes: list[dict[str, Any]] = [
        {"database": "test_" + url.database},
        {"driver": "psycopg"},
        {"driver": None},
        {"dialect": "mysql"},
        {"hostname": "db.example", "port": 5433},
        {"port": None},
        {"username": "bob", "password": "secret"},
        {"password": "secret"},
        {"query": ""},
    ]
    return [str(url.replace(**change)) for change in changes]


async def url_replaces_the_database_of_sqlite(world: World) -> Any:
    return [
        str(url.replace(database=url.database + "_test"))
        for url in map(world.DatabaseURL, ("sqlite:///my", "sqlite:////tmp/my"))
    ]


async def url_is_what_replace_gives(world: World) -> Any:
    replaced = world.DatabaseURL(FULL).replace(database="other")
    return type(replaced).__name__, replaced.database


async def handle_has_the_url_that_it_was_given(world: World) -> Any:
    url = world.Database(world.url).url
    return isinstance(url, world.DatabaseURL), url == world.url, str(url) == world.url


async def handle_url_is_readable_without_a_loop(world: World) -> Any:
    url = world.Database(FULL).url
    return {part: getattr(url, part) for part in PARTS}


async def handle_url_masks_the_password(world: World) -> Any:
    return repr(world.Database(FULL).url)


async def handle_url_leads_other_tools_to_the_database(world: World) -> Any:
    url = world.Database(world.url).url
    return sa.make_url(str(url)) == sa.make_url(world.url)


@only("sqlite")
async def handle_url_is_what_create_all_is_given(world: World) -> Any:
    metadata = sa.MetaData()
    sa.Table("made", metadata, sa.Column("id", sa.Integer))
    database = world.Database(world.url)
    engine = sa.create_engine(str(database.url))
    metadata.create_all(engine)
    engine.dispose()
    async with database:
        return await database.fetch_all("SELECT * FROM made")


async def handle_takes_a_url_object(world: World) -> Any:
    async with world.Database(world.DatabaseURL(world.url)) as database:
        return await database.fetch_val("SELECT 1")


async def handle_takes_a_url_that_names_the_driver(world: World) -> Any:
    driver = {"postgresql": "asyncpg", "sqlite": "aiosqlite"}[world.dialect]
    url = world.DatabaseURL(world.url).replace(driver=driver)
    async with world.Database(str(url)) as database:
        return await database.fetch_val("SELECT 1"), database.url.driver, database.url.dialect


@only("postgresql")
async def handle_takes_the_short_scheme_of_postgresql(world: World) -> Any:
    url = world.url.replace("postgresql://", "postgres://")
    async with world.Database(url) as database:
        return await database.fetch_val("SELECT 1"), database.url.scheme, database.url == url


async def handle_has_the_options_it_was_given(world: World) -> Any:
    return world.Database("postgresql://localhost/x", min_size=1, max_size=3).options


async def handle_of_an_unknown_dialect_is_refused_when_made(world: World) -> Any:
    return attempt_call(world.Database, "nosuch://localhost/x")


async def handle_of_no_url_is_refused_when_made(world: World) -> Any:
    return attempt_call(world.Database, None)


async def handle_takes_force_rollback_by_keyword_only(world: World) -> Any:
    return attempt_call(lambda: type(world.Database(world.url, True)).__name__)  # noqa: FBT003


async def handle_with_an_unknown_option(world: World) -> Any:
    try:
        async with world.Database(world.url, no_such_option=1) as database:
            return await database.fetch_val("SELECT 1")
    except TypeError:  # ours has a name and a code, too
        return "raised TypeError"


async def _ask(world: World, url: str, query: str = "SELECT 1", **options: Any) -> Any:
    async with world.Database(url, **options) as database:
        return await database.fetch_val(query)


@only("postgresql")
async def options_in_the_url_of_postgresql(world: World) -> Any:
    queries = "min_size=1&max_size=2", "min_size=0&max_size=20&ssl=false", "ssl=disable"
    return [await attempt(_ask(world, f"{world.url}?{query}")) for query in queries]


@only("postgresql")
async def options_ssl_in_the_url_is_required_if_true(world: World) -> Any:
    refused = await attempt(_ask(world, f"{world.url}?ssl=true"))
    return refused, await attempt(_ask(world, world.url, ssl="require"))


@only("postgresql")
async def options_by_keyword_for_the_pool(world: World) -> Any:
    options: dict[str, Any] = {
        "min_size": 1,
        "max_size": 3,
        "max_queries": 100,
        "max_inactive_connection_lifetime": 30.0,
    }
    return await _ask(world, world.url, **options)


@only("postgresql")
async def options_keyword_goes_before_the_url(world: World) -> Any:
    return await _ask(world, f"{world.url}?ssl=true&min_size=2", ssl=False, min_size=1, max_size=1)


@only("postgresql")
async def options_max_size_bounds_the_connections(world: World) -> Any:
    async def pid() -> Any:
        return await database.fetch_val("SELECT pg_backend_pid() FROM pg_sleep(0.02)")

    async with world.Database(world.url, min_size=1, max_size=2) as database:
        return len(set(await asyncio.gather(*(pid() for _ in range(6)))))


@only("postgresql")
async def options_min_size_opens_connections_at_connect(world: World) -> Any:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    watcher = await asyncpg.connect(world.url)
    try:
        async with world.Database(world.url, min_size=3, max_size=4):
            return await watcher.fetchval(query)
    finally:
        await watcher.close()


@only("postgresql")
async def options_server_settings_hold_for_the_sessions(world: World) -> Any:
    settings = {"application_name": "mine", "statement_timeout": "1234"}
    return [
        await _ask(world, world.url, f"SHOW {name}", server_settings=settings) for name in settings
    ]


@only("postgresql")
async def options_command_timeout_bounds_each_statement(world: World) -> Any:
    async def ask() -> Any:
        return await _ask(world, world.url, "SELECT pg_sleep(5)", command_timeout=0.1)

    try:
        return await ask()
    except TimeoutError:
        return "a TimeoutError"


@only("postgresql")
async def options_of_asyncpg_connections(world: World) -> Any:
    return await _ask(world, world.url, statement_cache_size=0, timeout=10)


@only("postgresql")
async def options_init_is_called_with_each_new_connection(world: World) -> Any:
    async def init(connection: Any) -> None:
        await connection.execute("SET application_name = 'by init'")

    return await _ask(world, world.url, "SHOW application_name", init=init, min_size=1)


@only("sqlite")
async def options_by_keyword_are_those_of_sqlite3(world: World) -> Any:
    return await _ask(world, world.url, timeout=3.0, cached_statements=10)


@only("sqlite")
async def options_of_sqlite_types_detected_by_declaration(world: World) -> Any:
    async with world.Database(world.url, detect_types=sqlite3.PARSE_DECLTYPES) as database:
        await database.execute("CREATE TABLE t (d date)")
        await database.execute("INSERT INTO t VALUES ('2024-05-06')")
        return await database.fetch_val("SELECT d FROM t")


@only("sqlite")
async def options_shared_memory_is_one_database_for_all_connections(world: World) -> Any:
    async with world.Database("sqlite:///file:compat?mode=memory&cache=shared", uri=True) as db:
        await db.execute("CREATE TABLE t (x INTEGER)")
        await db.execute("INSERT INTO t VALUES (1)")
        return await db.fetch_val("SELECT x FROM t")


@only("sqlite")
async def options_memory_without_a_name_is_a_database_per_connection(world: World) -> Any:
    async with world.Database("sqlite:///:memory:") as database:
        await database.execute("CREATE TABLE t (x INTEGER)")
        return await attempt(database.fetch_all("SELECT x FROM t"))


@only("sqlite")
async def options_memory_within_one_connection(world: World) -> Any:
    async with (
        world.Database("sqlite:///:memory:") as database,
        database.connection() as connection,
    ):
        await connection.execute("CREATE TABLE t (x INTEGER)")
        await connection.execute("INSERT INTO t VALUES (1)")
        return await connection.fetch_val("SELECT x FROM t")


@only("sqlite")
async def options_a_relative_path_is_relative_to_the_folder(world: World) -> Any:
    return attempt_call(lambda: world.Database("sqlite:///my.db").url.database)
