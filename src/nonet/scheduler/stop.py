"""When a sequence ends by itself: a stop token, its length, the end of the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nonet.core.request import Request
from nonet.scheduler.sequence import Sequence

__all__ = ["Ending", "extend", "stop_ids_of"]


@dataclass(frozen=True, slots=True)
class Ending:
    reason: Literal["stop", "length"]
    stop_token_id: int | None = None


def stop_ids_of(request: Request) -> frozenset[int]:
    """Tokens that end the output; `ignore_eos` is about the model's own end tokens only."""
    eos_ids = () if request.params.ignore_eos else request.eos_ids
    return frozenset((*eos_ids, *request.params.stop_token_ids))


def extend(seq: Sequence, token_ids: list[int]) -> Ending | None:
    """Append tokens until one ends the sequence; that one is kept, those after it are not.

    A stop token counts once `min_tokens` tokens came before it.
    """
    for token_id in token_ids:
        seq.token_ids.append(token_id)
        length = len(seq.token_ids)
        if token_id in seq.stop_ids and length > seq.min_len:
            return Ending("stop", token_id)
        if length >= seq.max_len:
            return Ending("length")
    return None
