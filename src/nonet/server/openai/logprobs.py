"""Log probabilities in the shapes of the two OpenAI dialects, and prompt log probabilities in vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nonet.core.outputs import TokenLogprob
from nonet.text.tokenizer import Tokenizer

__all__ = ["CompletionLogprobs", "chat_logprobs", "prompt_logprobs"]

LOWEST = -9999.0  # JSON has no infinity


def chat_logprobs(tokenizer: Tokenizer, rows: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""
    return {
        "content": [
            {
                **_chat_token(tokenizer, row.token_id, row.logprob),
                "top_logprobs": [
                    _chat_token(tokenizer, token_id, logprob) for token_id, logprob in row.top
                ],
            }
            for row in rows
        ],
        "refusal": None,
    }


@dataclass(slots=True)
class CompletionLogprobs:
    """The `logprobs` object of a text completion, built as tokens come."""

    tokenizer: Tokenizer
    num_top: int
    text_offset: list[int] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)

    def add_prompt(self, token_ids: Sequence[int], rows: Sequence[TokenLogprob | None]) -> None:
        """The echoed prompt's tokens; the first has no row."""
        offset = 0
        for token_id, row in zip(token_ids, rows, strict=False):
            self.add(token_id, row, offset)
            offset += len(self.tokenizer.token_bytes(token_id).decode("utf-8", "replace"))

    def add(self, token_id: int, row: TokenLogprob | None, offset: int) -> None:
        """One more token, with `offset` characters of the answer before it."""
        text = token_name(self.tokenizer, token_id)
        self.text_offset.append(offset)
        self.tokens.append(text)
        if row is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        self.token_logprobs.append(_finite(row.logprob))
        top = {
            token_name(self.tokenizer, other): _finite(logprob)
            for other, logprob in row.top[: self.num_top]
        }
        top.setdefault(text, _finite(row.logprob))
        self.top_logprobs.append(top)

    def take(self) -> dict[str, Any]:
        """What was added since the last call."""
        taken = {
            "text_offset": self.text_offset,
            "token_logprobs": self.token_logprobs,
            "tokens": self.tokens,
            "top_logprobs": self.top_logprobs,
        }
        self.text_offset, self.token_logprobs = [], []
        self.tokens, self.top_logprobs = [], []
        return taken


def prompt_logprobs(
    tokenizer: Tokenizer, rows: Sequence[TokenLogprob | None] | None
) -> list[dict[str, Any] | None] | None:
    """One entry per prompt token: null for the first, else token id -> logprob, rank and text."""
    if rows is None:
        return None
    return [None if row is None else _ranked(tokenizer, row) for row in rows]


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """The token as text; part of a character is spelled `bytes:\\xNN`, so that different tokens stay different."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(data),
    }


def _ranked(tokenizer: Tokenizer, row: TokenLogprob) -> dict[str, Any]:
    entries = {
        str(token_id): _entry(tokenizer, token_id, logprob, rank)
        for rank, (token_id, logprob) in enumerate(row.top, 1)
    }
    entries[str(row.token_id)] = _entry(tokenizer, row.token_id, row.logprob, row.rank)
    return entries


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int) -> dict[str, Any]:
    return {
        "logprob": _finite(logprob),
        "rank": rank,
        "decoded_token": tokenizer.token_bytes(token_id).decode("utf-8", "replace"),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
