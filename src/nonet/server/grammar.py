"""A call's grammar is compiled here first, off the event loop, so that its client hears what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nonet.core.errors import InvalidRequestError, OverloadedError
from nonet.core.grammar import Grammar
from nonet.core.limits import check
from nonet.core.thread_limit import ThreadLimit
from nonet.grammar.base import GrammarCompiler

__all__ = ["GrammarGate"]

COMPILE_LIMIT_S = (
    3.0  # of processor time, so that what is refused does not depend on who else computes
)
SHORTEST_WAIT_S = 0.02
MAX_LATE = 2  # grammars past their limit that may take a core each
BUSY = "the compiler of grammars is busy; try again later"
TURN_LIMIT_S = 10.0  # for a turn on the compiling thread


class GrammarGate:
    """One thread that compiles. A grammar that computes longer than the limit is refused, and another thread goes on.

    What is late still runs to its end, as nothing can stop it; with too many of these nobody else is let in meanwhile.
    A grammar that merely had to wait for a busy machine is late too, but OverloadedError says so.
    """

    def __init__(self, compiler: GrammarCompiler, limit_s: float = COMPILE_LIMIT_S) -> None:
        self._compiler = compiler
        self._limit_s = limit_s
        self._pool = self._new_pool()
        self._num_late = 0
        self._turn = asyncio.Lock()

    async def made(self, make: Callable[[], Grammar | None], param: str) -> Grammar | None:
        """What `make`, which runs on the compiling thread too, returns; it has then been compiled.

        InvalidRequestError, which names `param`, for a grammar that the engine could not use. OverloadedError
        for one that a busy machine kept waiting.
        """
        try:
            await asyncio.wait_for(self._turn.acquire(), TURN_LIMIT_S)
        except TimeoutError:
            raise OverloadedError(BUSY) from None
        try:
            return await self._compiled(make, param)
        except InvalidRequestError as error:
            raise InvalidRequestError(str(error), param) from None
        finally:
            self._turn.release()

    async def _compiled(self, make: Callable[[], Grammar | None], param: str) -> Grammar | None:
        loop = asyncio.get_running_loop()
        limit = ThreadLimit(self._limit_s)

        def work() -> Grammar | None:
            limit.start()
            grammar = make()
            if grammar is not None:
                check("grammar", grammar.text, param=param)
                self._compiler.compile(grammar)
            return grammar

        ready = loop.run_in_executor(self._pool, self._compiler.load)
        try:
            await asyncio.wait_for(asyncio.shield(ready), TURN_LIMIT_S)
        except TimeoutError:
            ready.add_done_callback(_forgotten)
            raise OverloadedError(BUSY) from None
        job = loop.run_in_executor(self._pool, work)
        return await self._in_time(job, limit)

    async def _in_time(
        self, job: asyncio.Future[Grammar | None], limit: ThreadLimit
    ) -> Grammar | None:
        while not limit.is_over and not limit.is_late:
            try:
                return await asyncio.wait_for(
                    asyncio.shield(job), max(limit.left_s, SHORTEST_WAIT_S)
                )
            except TimeoutError:
                continue
        self._leave(job)
        if not limit.is_over:
            raise OverloadedError(BUSY)
        raise InvalidRequestError(
            f"the grammar took longer than {self._limit_s:g} s to compile; make it simpler"
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, job: asyncio.Future[Grammar | None]) -> None:
        """Let a late job run on by itself."""

        def over(done: asyncio.Future[Grammar | None]) -> None:
            self._num_late -= 1
            _forgotten(done)

        self._num_late += 1
        job.add_done_callback(over)
        if self._num_late <= MAX_LATE:
            self._pool.shutdown(wait=False)
            self._pool = self._new_pool()

    @staticmethod
    def _new_pool() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="grammar")


def _forgotten(done: asyncio.Future[Any]) -> None:
    """Look at the end of a job that nobody waits for any more, or asyncio would complain."""
    if not done.cancelled():
        done.exception()
