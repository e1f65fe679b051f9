"""Layers above the engine: each may answer an ask, change it, account for it, or hand it on.

A layer is `handle(ask, next)`. The pipeline calls the first, and each calls `next` for what stands below it; below
the last is the engine. Layers are chosen by spec strings and stand in the catalogue's order, whatever the order of the
flags: limits see every call, the ledger books every answer, and caches stand next to the engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from nonet.core.errors import ConfigError
from nonet.gateway import LAYERS
from nonet.gateway.answer import Ask, Reply
from nonet.gateway.site import Site

__all__ = ["Layer", "Next", "Pipeline", "build_layers"]

Next = Callable[[Ask], Awaitable[Reply]]


class Layer(Protocol):
    """One layer. It is built as `Class(config, site)`; `start` comes before the first ask and `close` after the last.

    `handle` either answers or awaits `next(ask)`, once or more. It may wrap the pieces of the reply; a wrapper closes
    what it wraps. Errors pass through it as exceptions. It must not block the event loop.
    """

    async def start(self) -> None: ...
    async def handle(self, ask: Ask, next: Next) -> Reply: ...
    async def close(self) -> None: ...


class Pipeline:
    """Layers on top of an engine, from the first to see an ask to the last.

    Example::

        pipeline = Pipeline(build_layers(["exact_cache"], site), EngineAnswers(engine, tokenizer))
        reply = await pipeline.answer(ask)
    """

    def __init__(self, layers: Sequence[Layer], bottom: Next) -> None:
        self.layers = tuple(layers)
        self.answer: Next = bottom
        for layer in reversed(self.layers):
            self.answer = partial(layer.handle, next=self.answer)
        if self.layers:
            self.answer = partial(_told_tier, next=self.answer)

    async def start(self) -> None:
        for layer in self.layers:
            await layer.start()

    async def close(self) -> None:
        for layer in self.layers:
            await layer.close()


async def _told_tier(ask: Ask, next: Next) -> Reply:
    """Whatever layers there are, the answer says in which class it was served."""
    reply = await next(ask)
    reply.outcome.tier = ask.service_class
    return reply


def build_layers(specs: Sequence[str], site: Site) -> list[Layer]:
    """The layers that the specs name, in the catalogue's order. ConfigError when one is named twice."""
    chosen: dict[str, Layer] = {}
    for spec in specs:
        name, cls, config = LAYERS.configured(spec)
        if name in chosen:
            raise ConfigError(f"the gateway layer {name!r} is given twice; give it once")
        chosen[name] = cls(config, site)
    return [chosen[name] for name in LAYERS.order() if name in chosen]
