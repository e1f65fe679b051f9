"""An answer as it is kept: its pieces step by step, so that it can be replayed as the stream it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from nonet.core.outputs import FinishReason, TokenLogprob
from nonet.gateway.answer import ChoiceText, Usage

__all__ = ["Entry", "decode_steps", "encode_answer", "piece_bytes"]


class _Piece(msgspec.Struct, array_like=True, frozen=True):
    choice: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprob] = []
    text_offsets: list[int] = []
    prompt_logprobs: list[TokenLogprob | None] | None = None
    embedding: bytes | None = None


class _Answer(msgspec.Struct, array_like=True, frozen=True):
    usage: tuple[int, int, int, int, int]
    finish: FinishReason
    seconds: float
    steps: list[list[_Piece]]


class _Head(msgspec.Struct, array_like=True, frozen=True):
    """The beginning of an answer; the steps are left undecoded."""

    usage: tuple[int, int, int, int, int]
    finish: FinishReason
    seconds: float
    steps: msgspec.Raw


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One kept answer; equal only to itself, so that whoever holds one can tell whether it is still there."""

    key: bytes
    tenant: str
    made_s: float  # Unix time
    body: bytes
    usage: Usage
    finish: FinishReason
    seconds: float  # that making it took

    @property
    def num_bytes(self) -> int:
        return len(self.body) + 512  # about what Python adds

    @classmethod
    def from_body(cls, key: bytes, tenant: str, made_s: float, body: bytes) -> Entry:
        """msgspec.DecodeError for bytes that are no answer."""
        head = msgspec.msgpack.decode(body, type=_Head)
        return cls(key, tenant, made_s, body, Usage(*head.usage), head.finish, head.seconds)

    @property
    def answer_id(self) -> str:
        """For the operator: names the entry without telling what is in it."""
        return hashlib.sha256(self.key).hexdigest()[:16]


def encode_answer(
    steps: Iterable[list[ChoiceText]], usage: Usage, finish: FinishReason, seconds: float
) -> bytes:
    counts = (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.written_5m_tokens,
        usage.written_1h_tokens,
    )
    packed = [[_packed(piece) for piece in step] for step in steps]
    return msgspec.msgpack.encode(_Answer(counts, finish, seconds, packed))


def decode_steps(entry: Entry) -> list[list[ChoiceText]]:
    answer = msgspec.msgpack.decode(entry.body, type=_Answer)
    return [[_unpacked(piece) for piece in step] for step in answer.steps]


def piece_bytes(pieces: list[ChoiceText]) -> int:
    """About how much memory the pieces of a step take."""
    size = 64
    for piece in pieces:
        size += 256 + len(piece.text) + 8 * len(piece.token_ids) + len(piece.embedding or b"")
        for rows in (piece.logprobs, piece.prompt_logprobs or ()):
            size += sum(80 * (1 + len(row.top)) for row in rows if row is not None)
    return size


def _packed(piece: ChoiceText) -> _Piece:
    return _Piece(
        choice=piece.choice,
        text=piece.text,
        token_ids=piece.token_ids,
        finish_reason=piece.finish_reason,
        stop_reason=piece.stop_reason,
        logprobs=piece.logprobs,
        text_offsets=piece.text_offsets,
        prompt_logprobs=piece.prompt_logprobs,
        embedding=piece.embedding,
    )


def _unpacked(piece: _Piece) -> ChoiceText:
    return ChoiceText(
        choice=piece.choice,
        text=piece.text,
        token_ids=piece.token_ids,
        logprobs=piece.logprobs,
        text_offsets=piece.text_offsets,
        prompt_logprobs=piece.prompt_logprobs,
        finish_reason=piece.finish_reason,
        stop_reason=piece.stop_reason,
        embedding=piece.embedding,
    )
