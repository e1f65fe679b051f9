"""The server's knowledge of the engine's adapters: which there are, and commands that are on their way.

Adapters that were loaded while serving are loaded again when the engine had to be started anew.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from nonet.core.errors import (
    InvalidRequestError,
    NonetError,
    NotFoundError,
    UnavailableError,
    UserError,
)
from nonet.core.messages import (
    AdapterInfo,
    Answered,
    Command,
    EngineInfo,
    LoadAdapter,
    UnloadAdapter,
)

__all__ = ["AdapterRegistry"]

ANSWER_LIMIT_S = 300.0

logger = logging.getLogger("nonet.engine")


class AdapterRegistry:
    """Adapters by name. `send` hands a command to the engine; False when there is none."""

    def __init__(self, send: Callable[[Command], bool]) -> None:
        self._send = send
        self._known: dict[str, AdapterInfo] = {}
        self._paths: dict[str, str] = {}  # of those loaded while serving
        self._waiting: dict[int, tuple[Command, asyncio.Future[None]]] = {}
        self._numbers = itertools.count(1)

    @property
    def adapters(self) -> list[AdapterInfo]:
        return list(self._known.values())

    def find(self, name: str) -> AdapterInfo | None:
        return self._known.get(name)

    async def load(self, name: str, path: str) -> None:
        """Have the engine read the directory `path`. InvalidRequestError says what is wrong with it."""
        await self._ask(LoadAdapter(next(self._numbers), name, path))

    async def unload(self, name: str) -> None:
        """No new request may use it from now on; those that run or wait end as they would have."""
        if name not in self._known:
            raise NotFoundError(f"no adapter {name[:200]!r} is loaded here")
        await self._ask(UnloadAdapter(next(self._numbers), name))

    def answered(self, answer: Answered) -> None:
        """The engine's answer to a command; it counts also when nobody waits for it any more."""
        command, future = self._waiting.pop(answer.command_id)
        error: UserError | None = None
        if answer.adapter is None:
            kind = NotFoundError if answer.is_unknown else InvalidRequestError
            error = kind(answer.error or "refused")
        elif isinstance(command, LoadAdapter):
            self._known[command.name] = answer.adapter
            self._paths[command.name] = command.path
        else:
            self._known.pop(command.name, None)
            self._paths.pop(command.name, None)
        _settle(future, error)

    async def restore(self, info: EngineInfo) -> None:
        """A new engine is ready: it has the adapters of `info`, and gets the others again."""
        self._known = {adapter.name: adapter for adapter in info.adapters}
        for name, path in list(self._paths.items()):
            try:
                await self.load(name, path)
            except UserError as error:  # the directory has changed since
                del self._paths[name]
                logger.error("event=adapter_lost name=%r error=%s", name, error)

    def fail(self, error: NonetError) -> None:
        """The engine is gone, and with it every command on its way."""
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            _settle(future, error)

    async def _ask(self, command: Command) -> None:
        if not self._send(command):
            raise UnavailableError("the engine is being restarted; try again shortly")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[command.command_id] = (command, future)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await future
        except TimeoutError:
            raise UnavailableError("the engine did not answer in time") from None


def _settle(future: asyncio.Future[None], error: NonetError | None) -> None:
    """Wake who waits, if anybody still does."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
