"""Below all layers, beside the engine: a text encoder answers the asks that name one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

from nonet.embed.base import Embedder
from nonet.gateway.answer import Ask, ChoiceText, Outcome, Reply, Usage
from nonet.gateway.pipeline import Next

__all__ = ["EncoderAnswers", "beside"]

AT_ONCE = 16  # texts in one turn of the thread, so that small asks do not wait for large ones


class EncoderAnswers:
    """Runs an encoder on a thread of its own; asks take turns."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    async def __call__(self, ask: Ask) -> Reply:
        usage = Usage(prompt_tokens=ask.num_prompt_tokens)
        return Reply(self._pieces(ask), usage, Outcome(), pending_bytes=lambda: 0)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _pieces(self, ask: Ask) -> AsyncGenerator[list[ChoiceText], None]:
        loop = asyncio.get_running_loop()
        texts = [request.prompt_ids for request in ask.requests]
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            vectors = await loop.run_in_executor(self._thread, self._embedder.embed, some)
            yield [
                ChoiceText(
                    start + number,
                    embedding=vector.astype("<f4").tobytes(),
                    finish_reason="stop",
                )
                for number, vector in enumerate(vectors)
            ]


def beside(engine: Next, encoder: Next) -> Next:
    """The end of a pipeline where some asks are for an encoder."""

    async def answer(ask: Ask) -> Reply:
        return await (encoder if ask.encoder else engine)(ask)

    return answer
