"""Whose API a call speaks. It decides the shape of errors, which any route may have to give, and the door before it."""

from __future__ import annotations

import enum

__all__ = ["Dialect", "dialect_of"]

MESSAGES_PATH = "/v1/messages"


class Dialect(enum.Enum):
    """The APIs that are spoken here."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


def dialect_of(path: str, anthropic_version: str | None) -> Dialect:
    """By the path, and on paths that both APIs have by the header that one of them requires.

    >>> dialect_of("/v1/messages/count_tokens", None), dialect_of("/v1/models", None)
    (<Dialect.ANTHROPIC: 'anthropic'>, <Dialect.OPENAI: 'openai'>)
    """
    if (
        anthropic_version is not None
        or path == MESSAGES_PATH
        or path.startswith(MESSAGES_PATH + "/")
    ):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI
