"""How an answer leaves: chunk by chunk as events, or whole; the dialects only supply the shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nonet.core.errors import NonetError
from nonet.server.call import Call
from nonet.server.generation import ChoiceText, Generation, Usage

__all__ = ["StreamShape", "extend_choice", "send_stream", "send_whole"]


class StreamShape(Protocol):
    """Builds the events of one stream; each is a complete block, or b"" where there is nothing to say."""

    def opening(self, usage: Usage) -> bytes:
        """What goes before the first piece; `usage` counts that piece already."""
        ...

    def piece(self, piece: ChoiceText) -> bytes: ...

    def ending(self, usage: Usage) -> bytes:
        """What follows the last piece, the mark of the end included."""
        ...

    def failure(self, error: NonetError) -> bytes:
        """Instead of `ending`, when the answer cannot be completed."""
        ...


async def send_stream(
    call: Call,
    generation: Generation,
    shape: StreamShape,
    *,
    before_end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Events as the engine steps; one write for all choices of a step.

    Nothing is sent before the first text, so that a rejection is still a status; a long silence sends the head early.
    `before_end` is awaited once all pieces were taken and before their end is told; its error is told instead.
    """
    stream = call.event_stream()
    idle_s = call.state.config.keep_alive_s
    is_open = False
    with call.state.guard.watch(stream):
        async with call.while_connected(), contextlib.aclosing(generation.pieces(idle_s)) as steps:
            try:
                async for pieces in steps:
                    if not pieces:
                        await stream.keep_alive()
                        continue
                    events = b"" if is_open else shape.opening(generation.usage)
                    is_open = True
                    events += b"".join([shape.piece(piece) for piece in pieces])
                    if events:
                        await stream.write(events)
                if before_end is not None:
                    await before_end()
            except NonetError as error:
                if not stream.is_started:
                    raise
                await stream.finish(shape.failure(error))
                return
            await stream.finish(shape.ending(generation.usage))


async def send_whole(
    call: Call,
    generation: Generation,
    build: Callable[[list[ChoiceText]], dict[str, Any]],
    *,
    before_end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """One JSON object when all choices have finished and `before_end` is done."""
    pieces_at_end = generation.pieces(each_step=False)
    async with call.while_connected(), contextlib.aclosing(pieces_at_end) as steps:
        choices = [ChoiceText(choice) for choice in range(generation.num_choices)]
        async for pieces in steps:
            for piece in pieces:
                extend_choice(choices[piece.choice], piece)
        answer = build(choices)
        if before_end is not None:
            await before_end()
        await call.respond(answer)


def extend_choice(whole: ChoiceText, piece: ChoiceText) -> None:
    """Add the next piece of a choice to what there is of it."""
    whole.text += piece.text
    whole.token_ids += piece.token_ids
    whole.logprobs += piece.logprobs
    whole.text_offsets += piece.text_offsets
    whole.thought += piece.thought
    whole.calls += piece.calls
    if piece.prompt_logprobs is not None:
        whole.prompt_logprobs = piece.prompt_logprobs
    if piece.embedding is not None:
        whole.embedding = piece.embedding
    if piece.finish_reason is not None:
        whole.finish_reason = piece.finish_reason
        whole.stop_reason = piece.stop_reason
        whole.ends_in_calls = piece.ends_in_calls
