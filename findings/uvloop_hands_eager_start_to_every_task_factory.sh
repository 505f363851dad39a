#!/bin/sh
# uvloop 0.23.0 on CPython 3.13 and later calls a loop's task factory with eager_start= each time, also where nobody has
# asked for it. asyncio hands on what it was given alone, so a factory(loop, coro, *, name=None, context=None) works there.
# Seen on CPython 3.13.0 and 3.14.10:
#   With a factory of that kind no task can be made in a loop of uvloop: TypeError, from create_task, gather and
#   ensure_future. On CPython 3.12.1 uvloop 0.23.0 does not hand it on.
#   aiomonitor 0.7.1 has such a factory: with hook_task_factory=True a program makes no more tasks.
#   So has CPython 3.13.0 itself: asyncio.eager_task_factory takes no eager_start there.
# Guess before the run: a factory that asyncio calls is called by uvloop in the same way.
# Exits 0 while that is so. Needs Python 3.13 or later: PYTHON=python3.14.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 13) and "PYTHON must be 3.13 or later")'
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0 aiomonitor==0.7.1
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import sys

import aiomonitor
import uvloop

PORTS = {"port": 0, "webui_port": 0, "console_port": 0}


def plain(loop, coro, *, name=None, context=None):
    return asyncio.Task(coro, loop=loop, name=name, context=context)


async def seven():
    return 7


async def made():
    work = seven()
    try:
        return await asyncio.create_task(work)
    except TypeError as error:
        return str(error).partition("() ")[2]
    finally:
        work.close()


async def by_hand():
    loop = asyncio.get_running_loop()
    loop.set_task_factory(plain)
    try:
        return await made()
    finally:
        loop.set_task_factory(None)


async def by_aiomonitor():
    with aiomonitor.start_monitor(asyncio.get_running_loop(), hook_task_factory=True, **PORTS):
        return await made()


seen = []
for new_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
    for main in (by_hand, by_aiomonitor):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            seen.append(runner.run(main()))
print(*seen, sep="\n")
told = "got an unexpected keyword argument 'eager_start'"
sys.exit(seen != [7, 7, told, told])
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/run.py"
