"""From prompts to text pieces: one object per HTTP call, whatever its dialect and however it is sent.

It runs the call's requests in the engine, turns token deltas into text, ends choices at stop strings, and keeps the
counts that become `usage` and metrics.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from nonet.core.errors import EngineDeadError, NonetError
from nonet.core.outputs import FinishReason, SequenceDelta, TokenLogprob
from nonet.core.request import Request
from nonet.server.state import ServerState
from nonet.text.stream import TextStream

__all__ = ["ChoiceText", "Generation", "Usage"]


@dataclass(slots=True)
class ChoiceText:
    """New text of one choice; several deltas of a reader that was behind come as one."""

    choice: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)  # characters before each token
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of the whole call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def as_json(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Generation:
    """Requests of one call, in the order of its prompts; choice numbers run over prompts, then over n."""

    def __init__(
        self,
        state: ServerState,
        requests: Sequence[Request],
        received_s: float,
        echoed: Sequence[int] | None = None,
    ) -> None:
        """`echoed` is, per request, how many characters of prompt the answer will repeat before its own."""
        self._state = state
        self._requests = list(requests)
        self._received_s = received_s
        self._n = requests[0].params.n
        self._first_choice = {
            request.request_id: number * self._n for number, request in enumerate(requests)
        }
        self._eos_ids = frozenset(requests[0].eos_ids)
        self._streams = [
            TextStream(state.tokenizer, request.params, echoed[number] if echoed else 0)
            for number, request in enumerate(requests)
            for _ in range(self._n)
        ]
        self._is_open = [True] * len(self._streams)
        self._is_streamed = True
        self._sent_s = 0.0
        self._first_s = 0.0
        self._last_s = 0.0
        self.usage = Usage(prompt_tokens=sum(len(request.prompt_ids) for request in requests))

    @property
    def num_choices(self) -> int:
        return len(self._streams)

    @property
    def request_ids(self) -> list[str]:
        return [request.request_id for request in self._requests]

    async def pieces(
        self, idle_s: float | None = None, *, each_step: bool = True
    ) -> AsyncGenerator[list[ChoiceText], None]:
        """New text, at most one piece per choice each time; an empty list when nothing came for `idle_s`.

        Without `each_step` the pieces are few and large; stop strings, which must be seen early, overrule that.
        Leaving early aborts the requests.
        """
        metrics = self._state.metrics
        self._is_streamed = each_step
        self._sent_s = time.monotonic()
        metrics.queue(self._sent_s - self._received_s)
        try:
            stream = self._state.engine.stream(
                self._requests,
                idle_s=idle_s,
                each_step=each_step or bool(self._requests[0].params.stop),
            )
            async with contextlib.aclosing(stream) as steps:
                async for deltas in steps:
                    if not deltas:
                        yield []
                        continue
                    pieces = self._take(deltas)
                    if pieces:
                        yield pieces
            self._observe_end()
        except NonetError:
            self._count_open("error")
            raise
        finally:
            self._count_open("abort")

    def _take(self, deltas: list[SequenceDelta]) -> list[ChoiceText]:
        self._observe_delivery()
        pieces: dict[int, ChoiceText] = {}
        for delta in deltas:
            choice = self._first_choice[delta.request_id] + delta.index
            if not self._is_open[choice]:
                continue
            piece = pieces.get(choice)
            if piece is None:
                piece = pieces[choice] = ChoiceText(choice)
            self._feed(piece, delta)
        return list(pieces.values())

    def _feed(self, piece: ChoiceText, delta: SequenceDelta) -> None:
        if delta.finish_reason in ("error", "abort"):
            raise EngineDeadError(delta.error or "the engine dropped this request; try again")
        new = self._streams[piece.choice].feed(
            delta.token_ids, delta.finish_reason, delta.stop_token_id
        )
        kept = delta.token_ids[: new.num_tokens]
        piece.text += new.text
        piece.token_ids += kept
        if delta.logprobs is not None:
            piece.logprobs += delta.logprobs[: new.num_tokens]
            piece.text_offsets += new.text_offsets
        if delta.prompt_logprobs is not None:
            piece.prompt_logprobs = delta.prompt_logprobs
        self.usage.completion_tokens += len(kept)
        if delta.index == 0:
            self.usage.cached_tokens += delta.num_cached
        if new.stop_string is not None:
            self._finish(piece, "stop", new.stop_string)
            if delta.finish_reason is None:
                self._state.engine.abort(delta.request_id, delta.index)
        elif delta.finish_reason is not None:
            stop_id = delta.stop_token_id
            self._finish(piece, delta.finish_reason, None if stop_id in self._eos_ids else stop_id)

    def _finish(
        self, piece: ChoiceText, reason: FinishReason, stop_reason: int | str | None
    ) -> None:
        piece.finish_reason = reason
        piece.stop_reason = stop_reason
        self._is_open[piece.choice] = False
        self._state.metrics.finished(reason)

    def _observe_delivery(self) -> None:
        now = time.monotonic()
        metrics = self._state.metrics
        if self._first_s == 0.0:
            self._first_s = now
            metrics.ttft(now - self._received_s)
            metrics.prefill(now - self._sent_s)
        elif self._is_streamed:
            metrics.itl(now - self._last_s)
        self._last_s = now

    def _observe_end(self) -> None:
        self._state.metrics.e2e(self._last_s - self._received_s)
        self._state.metrics.decode(self._last_s - self._first_s)

    def _count_open(self, reason: FinishReason) -> None:
        for choice, is_open in enumerate(self._is_open):
            if is_open:
                self._is_open[choice] = False
                self._state.metrics.finished(reason)
