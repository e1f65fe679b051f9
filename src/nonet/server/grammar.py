"""A call's grammar is compiled here first, off the event loop, so that its client hears what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nonet.core.errors import InvalidRequestError, OverloadedError
from nonet.core.grammar import Grammar
from nonet.core.limits import check
from nonet.grammar.base import GrammarCompiler

__all__ = ["GrammarGate"]

COMPILE_LIMIT_S = 2.0
TURN_LIMIT_S = 10.0  # for a turn on the compiling thread


class GrammarGate:
    """One thread that compiles. A grammar that takes longer than the limit is refused."""

    def __init__(self, compiler: GrammarCompiler, limit_s: float = COMPILE_LIMIT_S) -> None:
        self._compiler = compiler
        self._limit_s = limit_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    async def made(self, make: Callable[[], Grammar | None], param: str) -> Grammar | None:
        """What `make`, which runs on the compiling thread too, returns; it has then been compiled.

        InvalidRequestError, which names `param`, for a grammar that the engine could not use.
        """
        loop = asyncio.get_running_loop()
        has_turn = asyncio.Event()

        def work() -> Grammar | None:
            self._compiler.load()
            loop.call_soon_threadsafe(has_turn.set)
            grammar = make()
            if grammar is not None:
                check("grammar", grammar.text, param=param)
                self._compiler.compile(grammar)
            return grammar

        job = loop.run_in_executor(self._pool, work)
        try:
            await self._turn(has_turn, job)
            return await asyncio.wait_for(asyncio.shield(job), self._limit_s)
        except InvalidRequestError as error:
            raise InvalidRequestError(str(error), param) from None
        except TimeoutError:
            job.add_done_callback(lambda done: done.exception())  # nobody else asks for it
            raise InvalidRequestError(
                f"the grammar took longer than {self._limit_s:g} s to compile; make it simpler",
                param,
            ) from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, has_turn: asyncio.Event, job: asyncio.Future[Grammar | None]) -> None:
        """Wait until the job is under way, or over."""
        turn = asyncio.ensure_future(has_turn.wait())
        try:
            done, _ = await asyncio.wait(
                (turn, job), timeout=TURN_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            turn.cancel()
        if not done:
            job.cancel()
            raise OverloadedError("the compiler of grammars is busy; try again later")
