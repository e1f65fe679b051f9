"""What comes back: token deltas from the engine, and whole results for the caller."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Completion", "FinishReason", "RequestOutput", "SequenceDelta", "TokenLogprob"]

FinishReason = Literal["stop", "length", "abort", "error"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability of one token, its rank (1 is the most likely) and the most likely alternatives (id, logprob)."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]] = []


class SequenceDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one sequence since the last delta. The engine sends token ids only; text is made by `nonet.text`.

    `index` is the choice's number within its request. `finish_reason` is set on a sequence's last delta and never
    before. `prompt_logprobs` comes once, with the first delta of choice 0; its first entry is None, as nothing precedes
    the first prompt token.
    """

    request_id: str
    index: int
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it, when finish_reason is "stop"
    error: str | None = None  # with finish_reason "error"
    num_cached: int = 0  # prompt tokens taken from the prefix cache, on the first delta
    num_leased: list[int] = []  # newly kept under each of the request's leases, on the first delta
    pooled: bytes | None = None  # of a request that pools: float32, little endian


class Completion(msgspec.Struct, kw_only=True):
    """One choice of a finished or running request, with text."""

    index: int
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the token id or the string that stopped it
    error: str | None = None  # with finish_reason "error"


class RequestOutput(msgspec.Struct, kw_only=True):
    """A request with its choices, as `LLM.generate` returns it."""

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached: int = 0
    finished: bool = False
