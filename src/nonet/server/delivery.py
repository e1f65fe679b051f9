"""How an answer leaves: chunk by chunk as events, or whole; the dialects only supply the shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from nonet.core.errors import NonetError
from nonet.server.call import Call
from nonet.server.generation import ChoiceText, Generation, Usage

__all__ = ["StreamShape", "send_stream", "send_whole"]


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


async def send_stream(call: Call, generation: Generation, shape: StreamShape) -> None:
    """Events as the engine steps; one write for all choices of a step.

    Nothing is sent before the first text, so that a rejection is still a status; a long silence sends the head early.
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
            except NonetError as error:
                if not stream.is_started:
                    raise
                await stream.finish(shape.failure(error))
                return
            await stream.finish(shape.ending(generation.usage))


async def send_whole(
    call: Call, generation: Generation, build: Callable[[list[ChoiceText]], dict[str, Any]]
) -> None:
    """One JSON object when all choices have finished."""
    pieces_at_end = generation.pieces(each_step=False)
    async with call.while_connected(), contextlib.aclosing(pieces_at_end) as steps:
        choices = [ChoiceText(choice) for choice in range(generation.num_choices)]
        async for pieces in steps:
            for piece in pieces:
                _extend(choices[piece.choice], piece)
        await call.respond(build(choices))


def _extend(whole: ChoiceText, piece: ChoiceText) -> None:
    whole.text += piece.text
    whole.token_ids += piece.token_ids
    whole.logprobs += piece.logprobs
    whole.text_offsets += piece.text_offsets
    whole.calls += piece.calls
    if piece.prompt_logprobs is not None:
        whole.prompt_logprobs = piece.prompt_logprobs
    if piece.embedding is not None:
        whole.embedding = piece.embedding
    if piece.finish_reason is not None:
        whole.finish_reason = piece.finish_reason
        whole.stop_reason = piece.stop_reason
        whole.ends_in_calls = piece.ends_in_calls
