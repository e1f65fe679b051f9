"""The semantic cache over a model that answers from a table, as its tests ask it."""

from __future__ import annotations

from typing import Any

from nonet.gateway.answer import Ask, Reply
from nonet.gateway.cache.semantic.layer import SemanticCache
from nonet.gateway.cache.semantic.settings import Settings
from tests.gateway_fakes import read, site
from tests.semantic_fakes import TableModel, WordEmbedder, chat

__all__ = ["KEPT", "RESET", "SAME", "Bench", "forgive"]

KEPT = "How do I reset my password?"
SAME = "How do I reset the password?"
RESET = "Click on the link below the form and follow the mail."


class Bench:
    """A layer over a model that answers from a table, with dice that never ask for verification."""

    def __init__(self, site_fields: dict[str, Any] | None = None, **knobs: Any) -> None:
        self.roll = 1.0
        self.model = TableModel({KEPT: RESET, SAME: RESET})
        settings = Settings(**{"delta": 0.3, **knobs})
        self.layer = SemanticCache(
            settings, site(**site_fields or {}), WordEmbedder(), dice=lambda: self.roll
        )

    async def ask(self, ask: Ask) -> Reply:
        reply = await self.layer.handle(ask, self.model)
        self.steps = await read(reply)
        await self.layer.settled()
        return reply

    async def outcome(self, *args: Any, **fields: Any) -> str | None:
        return (await self.ask(chat(*args, **fields))).outcome.cache

    async def prove(self, **fields: Any) -> int:
        """Ask until there is a hit; how often the model was asked."""
        for number in range(60):
            if await self.outcome(SAME if number else KEPT, **fields) == "semantic":
                return number
        raise AssertionError("no hit")

    @property
    def text(self) -> str:
        return "".join(piece.text for step in self.steps for piece in step)


def forgive(bench: Bench) -> None:
    """The thresholds learn at once and stop the hits themselves; here they must not, so that the proof has to."""
    for partition in bench.layer._partitions.values():
        for question in partition.questions.values():
            assert question.belief is not None
            for _ in range(20):
                question.belief.learn(0.75, True, partition.pool)
