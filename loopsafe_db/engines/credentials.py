"""The password of the next connection: asked of the user's callable, kept while it lasts."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING

from loopsafe_db.errors import AuthenticationError, ConnectTimeout, InvalidSettingError
from loopsafe_db.options import Token
from loopsafe_db.url import hidden

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from loopsafe_db.drivers.base import ConnectOptions
    from loopsafe_db.options import Password

    T = TypeVar("T")


class Credentials:
    """A ``password=`` callable, in one process."""

    def __init__(self, password: Password, connecting: ConnectOptions) -> None:
        self._password, self._connecting = password, connecting
        self._kept: tuple[str, float] | None = None  # a token, and until when it lasts

    async def use(self, connect: Callable[[str], Awaitable[T]]) -> T:
        """Call `connect` with the password; once more with a new one if a kept one is refused."""
        kept = self._kept
        if kept is not None and time.monotonic() < kept[1]:
            try:
                return await connect(kept[0])
            except AuthenticationError:
                if self._kept is kept:
                    self._kept = None
        return await connect(await self._ask())

    async def _ask(self) -> str:
        target, timeout = self._connecting.target, self._connecting.timeout
        answer = hidden(self._password())
        if inspect.isawaitable(answer):
            try:
                async with asyncio.timeout(timeout):
                    answer = hidden(await answer)
            except TimeoutError as error:
                why = f"password= gave no answer within {timeout:g} s"
                raise ConnectTimeout(target, why) from error
        if isinstance(answer, Token):
            self._kept = hidden(answer.value), time.monotonic() + answer.lifetime
            return self._kept[0]
        if not isinstance(answer, str):
            raise InvalidSettingError(
                f"password= gave a {type(answer).__name__}, and not a text or a Token"
            )
        return answer
