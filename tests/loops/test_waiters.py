"""Who waits for a driver in C is woken, also where a signal has come while that worked."""

from __future__ import annotations

import _thread
import signal
from functools import partial

import pytest

from loopsafe_db._runtime.transport import ANY_LOOP


class Limit(Exception):
    """What the signal's handler raises."""


class Strikes:
    """What has a signal come within C: its handler runs in the next function of Python's."""

    __neg__ = staticmethod(partial(_thread.interrupt_main, signal.SIGUSR1))


def strike(*_: object) -> None:
    raise Limit


async def test_a_signal_that_has_come_strikes_before_a_waiter_is_set() -> None:
    waiter = ANY_LOOP.create_future()
    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with pytest.raises(Limit):  # noqa: PT012 (a call more, and it would strike there)
            -Strikes()
            waiter.set_result(1)
        assert not waiter.done()
        waiter.set_result(2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert await waiter == 2
