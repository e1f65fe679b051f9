"""One generation in progress and everybody who waits for it: equal asks at one time cost one run of the model.

The flight has a task of its own, so the first to ask has no special part: anybody may leave, and the generation goes
on until the last has left. What fails, fails for all, with the same error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import msgspec

from nonet.core.errors import UnavailableError
from nonet.core.outputs import FinishReason
from nonet.gateway.answer import Ask, ChoiceText, Outcome, Reply, Usage
from nonet.gateway.cache.stored import Entry, decode_steps, piece_bytes
from nonet.gateway.pipeline import Next

__all__ = ["Flight", "finish_of", "replayed"]

STEPS_AT_ONCE = 64  # of a replay, before others get their turn


class Flight:
    """The pieces of one answer so far, and its readers, each at its own place in them.

    `on_landed` is called once, when the whole answer has come. Past `max_bytes` the flight takes no more readers and
    keeps no more than its last one has yet to read; then it does not land.
    """

    def __init__(
        self, ask: Ask, next: Next, max_bytes: int, on_landed: Callable[[Flight], None]
    ) -> None:
        self.is_streamed = ask.is_streamed
        self.steps: list[list[ChoiceText]] = []
        self.num_bytes = 0
        self.is_private = False
        self._max_bytes = max_bytes
        self._on_landed = on_landed
        self._num_readers = 0
        self._num_dropped = 0  # steps at the beginning that nobody needs any more
        self._num_idle = 0  # idle notices so far
        self._error: Exception | None = None
        self._is_over = False
        self._waiters: list[asyncio.Future[None]] = []
        self._reply: Reply | None = None
        self._task = asyncio.create_task(
            self._fly(msgspec.structs.replace(ask, keeps_steps=True, held=None), next)
        )

    def on_over(self, callback: Callable[[], None]) -> None:
        """Call back when nothing more will come, whatever the reason."""
        self._task.add_done_callback(lambda _: callback())

    def make_private(self) -> None:
        """Take no more readers, and do not land."""
        self.is_private = True

    @property
    def usage(self) -> Usage:
        """Of all that has come."""
        assert self._reply is not None
        return self._reply.usage

    @property
    def outcome(self) -> Outcome:
        """What the layers below said."""
        assert self._reply is not None
        return self._reply.outcome

    def may_join(self, ask: Ask) -> bool:
        """A reader of a stream does not join an answer that comes in one piece."""
        is_open = not self._is_over and not self.is_private
        return is_open and (self.is_streamed or not ask.is_streamed)

    async def join(self) -> Reply:
        """Be a reader from the first step on; returns when the layers below have replied. The outcome is the reader's
        own to fill in."""
        self._num_readers += 1
        try:
            while self._reply is None and self._error is None:
                await self._wait()
            if self._reply is None:
                assert self._error is not None
                raise self._error
        except BaseException:
            self._leave()
            raise
        reader = _Reader(self)
        usage = Usage(prompt_tokens=self._reply.usage.prompt_tokens)
        return Reply(reader.pieces(usage), usage, Outcome(), reader.pending_bytes)

    async def _fly(self, ask: Ask, next: Next) -> None:
        try:
            self._reply = reply = await next(ask)
            self._wake()
            async with contextlib.aclosing(reply.pieces) as steps:
                async for step in steps:
                    if step:
                        self._add(step)
                    else:
                        self._num_idle += 1
                    self._wake()
            if not self.is_private:
                self._on_landed(self)
        except asyncio.CancelledError:
            self._error = UnavailableError("the server is stopping")
            raise
        except Exception as error:
            self._error = error
        finally:
            self._is_over = True
            self._wake()

    def _add(self, step: list[ChoiceText]) -> None:
        self.steps.append(step)
        self.num_bytes += piece_bytes(step)
        if self.num_bytes > self._max_bytes:
            self.is_private = True

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _leave(self) -> None:
        self._num_readers -= 1
        if self._num_readers == 0 and not self._is_over:
            self._task.cancel()

    def _read(self, place: int) -> list[list[ChoiceText]]:
        """Steps from `place` on."""
        unread = self.steps[place - self._num_dropped :]
        if self.is_private and self._num_readers == 1:
            self._num_dropped += len(self.steps)
            self.steps = []
        return unread


class _Reader:
    """One reader's place in a flight."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._num_read = 0
        self._bytes_read = 0

    def pending_bytes(self) -> int:
        return self._flight.num_bytes - self._bytes_read

    async def pieces(self, usage: Usage) -> AsyncGenerator[list[ChoiceText], None]:
        flight = self._flight
        num_idle = flight._num_idle
        try:
            while True:
                steps = flight._read(self._num_read)
                self._num_read += len(steps)
                self._bytes_read = flight.num_bytes
                for step in steps:
                    count(step, usage, flight.usage)
                    yield step
                if steps:
                    continue
                if num_idle != flight._num_idle:
                    num_idle = flight._num_idle
                    yield []
                    continue
                if flight._error is not None:
                    raise flight._error
                if flight._is_over:
                    return
                await flight._wait()
        finally:
            flight._leave()


def count(step: list[ChoiceText], usage: Usage, whole: Usage) -> None:
    """Add a step's output tokens; what is known of the prompt is `whole`'s."""
    usage.completion_tokens += sum(len(piece.token_ids) for piece in step)
    usage.cached_tokens = whole.cached_tokens
    usage.written_5m_tokens = whole.written_5m_tokens
    usage.written_1h_tokens = whole.written_1h_tokens


def finish_of(steps: list[list[ChoiceText]], num_choices: int) -> FinishReason | None:
    """How the whole answer ended; None when a choice has no proper end."""
    reasons = {
        piece.choice: piece.finish_reason
        for step in steps
        for piece in step
        if piece.finish_reason is not None
    }
    if len(reasons) != num_choices or not set(reasons.values()) <= {"stop", "length"}:
        return None
    return "length" if "length" in reasons.values() else "stop"


async def replayed(
    entry: Entry, usage: Usage, whole: Usage
) -> AsyncGenerator[list[ChoiceText], None]:
    """The steps as they came, many at once: their events are the same. `whole` are the counts that `usage` grows to."""
    steps = decode_steps(entry)
    for start in range(0, len(steps), STEPS_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        some = steps[start : start + STEPS_AT_ONCE]
        pieces: list[ChoiceText] = []
        for step in some:
            count(step, usage, whole)
            pieces += step
        yield pieces
