"""The text encoder that a server offers beside its model."""

from __future__ import annotations

import time
from dataclasses import dataclass

from nonet.embed import EMBEDDERS
from nonet.embed.base import Embedder
from nonet.gateway.encode import EncoderAnswers
from nonet.weights.packaged import resolve_model

__all__ = ["ServedEncoder", "load_encoder"]


@dataclass(frozen=True, slots=True)
class ServedEncoder:
    """The encoder as clients see it, and what answers for it."""

    name: str
    created: int
    embedder: Embedder
    answers: EncoderAnswers


def load_encoder(argument: str | None) -> ServedEncoder | None:
    """A packaged name or a directory; UserError when it is no encoder."""
    if argument is None:
        return None
    embedder: Embedder = EMBEDDERS.load("bert").open(resolve_model(argument))
    return ServedEncoder(argument, int(time.time()), embedder, EncoderAnswers(embedder))
