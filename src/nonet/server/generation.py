"""One HTTP call's answer on its way through the gateway, whatever its dialect and however it is sent.

It hands the call's requests to the pipeline, tells the call what became of them, and observes for the metrics.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

import msgspec

from nonet.core.errors import NonetError
from nonet.core.outputs import FinishReason
from nonet.core.request import Request
from nonet.gateway.answer import Ask, ChoiceText, Conversation, Usage
from nonet.server.call import Call
from nonet.server.reader import AnswerReader

__all__ = ["ChoiceText", "Generation", "Usage"]


class Generation:
    """Requests of one call, in the order of its prompts; choice numbers run over prompts, then over n."""

    def __init__(
        self,
        call: Call,
        requests: Sequence[Request],
        received_s: float,
        echoed: Sequence[int] | None = None,
        conversation: Conversation | None = None,
        reader: AnswerReader | None = None,
        encoder: str = "",
    ) -> None:
        """`echoed` is, per request, how many characters of prompt the answer will repeat before its own. `reader`
        takes thoughts and tool calls out of the text."""
        self._call = call
        self._metrics = call.state.metrics
        given = call.caller.service_class
        if given is not None:
            requests = [msgspec.structs.replace(one, service_class=given) for one in requests]
        self._ask = Ask(
            requests=tuple(requests),
            caller=call.caller,
            route=call.scope["path"],
            model=encoder or call.model.name,
            echoed=tuple(echoed) if echoed is not None else None,
            conversation=conversation,
            encoder=encoder,
        )
        self._received_s = received_s
        self._reader = reader
        self._is_open = [True] * self._ask.num_choices
        self._is_streamed = True
        self._sent_s = 0.0
        self._first_s = 0.0
        self._last_s = 0.0
        self._usage = Usage(prompt_tokens=self._ask.num_prompt_tokens)

    @property
    def num_choices(self) -> int:
        return self._ask.num_choices

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        if self._reader is None:
            return self._usage
        return msgspec.structs.replace(self._usage, thought_tokens=self._reader.num_thought_tokens)

    async def pieces(
        self, idle_s: float | None = None, *, each_step: bool = True
    ) -> AsyncGenerator[list[ChoiceText], None]:
        """New text in order; an empty list when nothing came for `idle_s`.

        Without `each_step` the pieces may be few and large. Leaving early aborts the requests.
        """
        self._is_streamed = each_step
        self._sent_s = time.monotonic()
        self._metrics.queue(self._sent_s - self._received_s)
        ask = msgspec.structs.replace(self._ask, is_streamed=each_step, idle_s=idle_s)
        try:
            reply = await self._call.state.pipeline.answer(ask)
            self._usage = reply.usage
            self._call.replied(ask, reply)
            async with contextlib.aclosing(reply.pieces) as steps:
                async for pieces in steps:
                    if pieces:
                        self._observe(pieces)
                    if self._reader is not None:
                        yield [self._reader.split(piece) for piece in pieces]
                    else:
                        yield pieces
            self._observe_end()
        except NonetError:
            self._count_open("error")
            raise
        finally:
            self._count_open("abort")

    def _observe(self, pieces: list[ChoiceText]) -> None:
        now = time.monotonic()
        metrics = self._metrics
        if self._first_s == 0.0:
            self._first_s = now
            metrics.ttft(now - self._received_s)
            metrics.prefill(now - self._sent_s)
        elif self._is_streamed:
            metrics.itl(now - self._last_s)
        self._last_s = now
        for piece in pieces:
            if piece.finish_reason is not None:
                self._is_open[piece.choice] = False
                metrics.finished(piece.finish_reason)

    def _observe_end(self) -> None:
        self._metrics.e2e(self._last_s - self._received_s)
        self._metrics.decode(self._last_s - self._first_s)

    def _count_open(self, reason: FinishReason) -> None:
        for choice, is_open in enumerate(self._is_open):
            if is_open:
                self._is_open[choice] = False
                self._metrics.finished(reason)
