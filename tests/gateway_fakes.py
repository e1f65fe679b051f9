"""An engine in the test's own process, and asks for it: the gateway needs no model and no second process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonet.core.errors import NonetError
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.gateway.answer import Ask, Caller, ChoiceText, Reply
from nonet.gateway.generate import EngineAnswers
from nonet.gateway.pipeline import Layer, Pipeline
from nonet.gateway.site import Site
from nonet.text.tokenizer import Tokenizer, load_tokenizer
from tests.system.fake_engine import next_token
from tests.system.tiny_text import write_tokenizer


@dataclass
class ScriptedEngine:
    """The tokens of `tests.system.fake_engine`, one step per turn of the event loop; counts what it is asked."""

    num_started: int = 0
    num_steps: int = 0
    aborted: list[str] = field(default_factory=list)
    error_at: int | None = None  # fail in this step of every request
    gate: asyncio.Event | None = None  # steps wait until it is set
    num_cached: int = 0

    async def stream(
        self, requests: Sequence[Request], *, idle_s: float | None = None, each_step: bool = True
    ) -> AsyncGenerator[list[SequenceDelta], None]:
        self.num_started += len(requests)
        open_choices = {(r.request_id, i): r for r in requests for i in range(r.params.n)}
        late: list[SequenceDelta] = []
        position = 0
        try:
            while open_choices:
                await asyncio.sleep(0)
                if self.gate is not None:
                    await self.gate.wait()
                if position == self.error_at:
                    raise NonetError("told to fail")
                deltas = [
                    self._delta(request, index, position)
                    for (_, index), request in open_choices.items()
                ]
                self.num_steps += 1
                position += 1
                open_choices = {
                    key: request
                    for key, request in open_choices.items()
                    if position < (request.params.max_tokens or 8)
                    and (key[0], key[1]) not in self._dropped
                }
                late += deltas
                if each_step or not open_choices:
                    yield late
                    late = []
        finally:
            self.aborted += sorted({request_id for request_id, _ in open_choices})

    _dropped: set[tuple[str, int]] = field(default_factory=set)

    def abort(self, request_id: str, index: int | None = None) -> None:
        assert index is not None
        self._dropped.add((request_id, index))

    def pending_bytes(self, request_id: str) -> int:
        return 0

    def _delta(self, request: Request, index: int, position: int) -> SequenceDelta:
        is_last = position + 1 >= (request.params.max_tokens or 8)
        return SequenceDelta(
            request_id=request.request_id,
            index=index,
            token_ids=[next_token(request, index, position)],
            finish_reason="length" if is_last else None,
            num_cached=self.num_cached if position == 0 else 0,
        )


def tiny_tokenizer(folder: Path) -> Tokenizer:
    write_tokenizer(folder)
    return load_tokenizer(folder)


def site(**more: Any) -> Site:
    return Site(**{"model": "fake", "fingerprint": b"f" * 32, **more})


def pipeline(engine: ScriptedEngine, tokenizer: Tokenizer, *layers: Layer) -> Pipeline:
    return Pipeline(layers, EngineAnswers(engine, tokenizer))


def ask(
    prompt: str = "hello",
    *,
    name: str = "a",
    n: int = 1,
    caller: Caller | None = None,
    is_streamed: bool = True,
    temperature: float = 0.0,
    **params: Any,
) -> Ask:
    sampling = SamplingParams(
        **{"n": n, "temperature": temperature, "max_tokens": 8, **params}  # type: ignore[arg-type]
    )
    request = Request(
        request_id=f"{name}-0",
        prompt_ids=list(prompt.encode()),
        params=sampling,
        cache_salt=caller.tenant if caller is not None else "",
    )
    return Ask(
        requests=(request,), caller=caller or Caller(), is_streamed=is_streamed, route="/v1/test"
    )


async def read(reply: Reply) -> list[list[ChoiceText]]:
    return [step async for step in reply.pieces]


async def text(reply: Reply) -> str:
    """All text of choice 0."""
    steps = await read(reply)
    return "".join(piece.text for step in steps for piece in step if piece.choice == 0)
