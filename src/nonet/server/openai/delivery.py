"""How an answer leaves: chunk by chunk as events, or whole; the dialects only supply the shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from nonet.core.errors import NonetError
from nonet.server.call import Call, error_event
from nonet.server.generation import ChoiceText, Generation

__all__ = ["ChunkShape", "send_stream", "send_whole"]


class ChunkShape(Protocol):
    """Builds the events of one stream; each is a complete `data: ...` block or b""."""

    def opening(self) -> bytes: ...
    def piece(self, piece: ChoiceText) -> bytes: ...
    def usage(self, usage: dict[str, object]) -> bytes: ...


async def send_stream(
    call: Call, generation: Generation, shape: ChunkShape, *, with_usage: bool
) -> None:
    """Events as the engine steps; one write for all choices of a step.

    Nothing is sent before the first text, so that a rejection is still a status; a long silence sends the head early.
    """
    stream = call.event_stream()
    idle_s = call.state.config.keep_alive_s
    opening = shape.opening()
    with call.state.guard.watch(stream):
        async with call.while_connected(), contextlib.aclosing(generation.pieces(idle_s)) as steps:
            try:
                async for pieces in steps:
                    if not pieces:
                        await stream.keep_alive()
                        continue
                    events = b"".join([shape.piece(piece) for piece in pieces])
                    if opening:
                        events, opening = opening + events, b""
                    if events:
                        await stream.write(events)
            except NonetError as error:
                if not stream.is_started:
                    raise
                await stream.finish(error_event(error))
                return
            last = shape.usage(generation.usage.as_json()) if with_usage else b""
            await stream.finish(last)


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
    if piece.prompt_logprobs is not None:
        whole.prompt_logprobs = piece.prompt_logprobs
    if piece.finish_reason is not None:
        whole.finish_reason = piece.finish_reason
        whole.stop_reason = piece.stop_reason
