"""A fleet on two hosts: ``unshare --net python -m tests.faults.two_hosts WORKERS``.

In this network of its own each host is a further one, with an address on a bridge. Each has one worker, the budget is
four connections, and WORKERS is how many each of them counts. Prints as JSON what the doctor finds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from loopsafe_db import Database, get_database
from loopsafe_db.cli.database_checks import check_database
from loopsafe_db.testing.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

BUDGET = 4
HERE, HOSTS = "10.77.0.1", ("10.77.0.2", "10.77.0.3")
MANY = 8  # queries at once


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True)


def _make_network() -> None:
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "bridge", "type", "bridge")
    _ip("address", "add", f"{HERE}/24", "dev", "bridge")
    _ip("link", "set", "bridge", "up")


@contextmanager
def _host(address: str) -> Iterator[None]:
    """A worker on a host of this address, with all the connections that it may have."""
    join = 'read go && ip address add "$0/24" dev wire && ip link set wire up && exec "$@"'
    command = (sys.executable, "-m", "tests.faults.two_hosts", "work")
    with subprocess.Popen(
        ("unshare", "--net", "sh", "-c", join, address, *command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        plug = f"plug{address[-1]}"
        _wait_for_its_network(process.pid)
        _ip("link", "add", plug, "type", "veth", "peer", "wire", "netns", str(process.pid))
        _ip("link", "set", plug, "master", "bridge", "up")
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "connected\n"
        yield
        process.stdin.close()


def _wait_for_its_network(pid: int) -> None:
    ours = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pid}/ns/net") == ours:
        pass  # no event tells of it


async def _work() -> None:
    db = get_database()
    await asyncio.gather(*(db.fetch_val("SELECT 1 FROM pg_sleep(0.1)") for _ in range(MANY)))
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await db.disconnect()


async def _ask(url: str, query: str) -> str:
    async with Database(url) as database:
        return str(await database.fetch_val(query))


def _let_in(url: str) -> None:
    """Have the server let in who comes from the bridge."""
    hba = Path(asyncio.run(_ask(url, "SHOW hba_file")))
    hba.write_text(f"{hba.read_text()}\nhost all all 10.77.0.0/24 scram-sha-256\n")
    asyncio.run(_ask(url, "SELECT pg_reload_conf()"))


def main(workers: str) -> None:
    """Connect both, and have the doctor look."""
    _make_network()
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(settings={"listen_addresses": "*"}))
        _let_in(server.url)
        url = make_url(server.url).set(host=HERE).render_as_string(hide_password=False)
        os.environ["LOOPSAFE_DB_URL"] = url
        os.environ["LOOPSAFE_DB_APPLICATION_NAME"] = "reflector {process} {pid}"
        os.environ["LOOPSAFE_DB_FLEET_CONNECTIONS"] = str(BUDGET)
        os.environ["LOOPSAFE_DB_FLEET_WORKERS"] = workers
        for address in HOSTS:
            stack.enter_context(_host(address))
        print(json.dumps([asdict(each) for each in asyncio.run(check_database(url))]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(_work())
    else:
        main(sys.argv[1])
