"""Below all layers: the engine's token deltas become pieces of text, and choices end at their stop strings.

Tokens after a stop string are overshoot: neither returned nor counted, and the engine is told to stop.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Protocol

from nonet.core.errors import EngineDeadError
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.gateway.answer import Ask, ChoiceText, Outcome, Reply, Usage
from nonet.text.stream import TextStream
from nonet.text.tokenizer import Tokenizer

__all__ = ["Engine", "EngineAnswers"]

SHORT_TTL_S = 300.0  # what is kept longer is priced as kept for an hour


class Engine(Protocol):
    """What is needed of `nonet.engine.client.EngineClient`."""

    def stream(
        self, requests: Sequence[Request], *, idle_s: float | None = None, each_step: bool = True
    ) -> AsyncGenerator[list[SequenceDelta], None]: ...
    def abort(self, request_id: str, index: int | None = None) -> None: ...
    def pending_bytes(self, request_id: str) -> int: ...


class EngineAnswers:
    """The end of every pipeline: runs an ask's requests in the engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    async def __call__(self, ask: Ask) -> Reply:
        text = _AnswerText(ask, self._engine, self._tokenizer)
        engine, first_id = self._engine, ask.requests[0].request_id
        return Reply(
            pieces=text.pieces(),
            usage=text.usage,
            outcome=Outcome(),
            pending_bytes=lambda: engine.pending_bytes(first_id),
        )


class _AnswerText:
    """One answer as it comes: a text stream per choice, and the counts."""

    def __init__(self, ask: Ask, engine: Engine, tokenizer: Tokenizer) -> None:
        self._ask = ask
        self._engine = engine
        self._n = ask.requests[0].params.n
        self._first_choice = {
            request.request_id: number * self._n for number, request in enumerate(ask.requests)
        }
        self._eos_ids = frozenset(ask.requests[0].eos_ids)
        self._streams = [
            TextStream(tokenizer, request.params, ask.echoed[number] if ask.echoed else 0)
            for number, request in enumerate(ask.requests)
            for _ in range(self._n)
        ]
        self.usage = Usage(prompt_tokens=ask.num_prompt_tokens)

    async def pieces(self) -> AsyncGenerator[list[ChoiceText], None]:
        ask = self._ask
        stream = self._engine.stream(
            ask.requests,
            idle_s=ask.idle_s,
            each_step=ask.is_streamed or bool(ask.requests[0].params.stop),
        )
        async with contextlib.aclosing(stream) as deliveries:
            async for deltas in deliveries:
                if not deltas:
                    yield []
                    continue
                for step in _steps(deltas) if ask.keeps_steps else (deltas,):
                    pieces = self._take(step)
                    if pieces:
                        yield pieces

    def _take(self, deltas: list[SequenceDelta]) -> list[ChoiceText]:
        pieces: dict[int, ChoiceText] = {}
        for delta in deltas:
            choice = self._first_choice[delta.request_id] + delta.index
            if self._streams[choice].is_finished:
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
        if delta.pooled is not None:
            piece.embedding = delta.pooled
        self.usage.completion_tokens += len(kept)
        if delta.index == 0:
            self._count_prompt(delta)
        if new.stop_string is not None:
            piece.finish_reason, piece.stop_reason = "stop", new.stop_string
            if delta.finish_reason is None:
                self._engine.abort(delta.request_id, delta.index)
        elif delta.finish_reason is not None:
            stop_id = delta.stop_token_id
            piece.finish_reason = delta.finish_reason
            piece.stop_reason = None if stop_id in self._eos_ids else stop_id

    def _count_prompt(self, delta: SequenceDelta) -> None:
        usage = self.usage
        usage.cached_tokens += delta.num_cached
        request = self._ask.requests[self._first_choice[delta.request_id] // self._n]
        for lease, num_tokens in zip(request.leases, delta.num_leased, strict=False):
            if lease.ttl_s <= SHORT_TTL_S:
                usage.written_5m_tokens += num_tokens
            else:
                usage.written_1h_tokens += num_tokens


def _steps(deltas: list[SequenceDelta]) -> Iterator[list[SequenceDelta]]:
    """The deltas of a late reader, one list per step again: a step brings no sequence twice."""
    step: list[SequenceDelta] = []
    seen: set[tuple[str, int]] = set()
    for delta in deltas:
        key = (delta.request_id, delta.index)
        if key in seen:
            yield step
            step, seen = [], set()
        step.append(delta)
        seen.add(key)
    if step:
        yield step
