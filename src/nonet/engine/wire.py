"""Bytes between the server and the engine process: the launch file, the codecs, and the answer to a bad request.

The socket is a ZeroMQ pair over ipc in a directory that only this user may enter. Frames are msgpack of the tagged
structs of `nonet.core.messages`, decoded into their types; nothing is ever unpickled.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from nonet.core.errors import (
    ContextLengthError,
    InvalidRequestError,
    NonetError,
    OverloadedError,
    UserError,
)
from nonet.core.messages import Answered, EngineMessage, Failed, Outputs, Ready

__all__ = [
    "EngineFrame",
    "Launch",
    "Rejected",
    "decode_for_engine",
    "decode_for_server",
    "encode",
    "rejection_error",
    "rejection_of",
]


class Rejected(msgspec.Struct, frozen=True, kw_only=True, tag="rejected"):
    """To the server: this request was not taken; the engine is well. Carries what the HTTP answer needs."""

    request_id: str
    kind: Literal["invalid", "context", "overloaded"]
    error: str
    param: str | None = None
    retry_after_s: float = 1.0


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process is started with, as a JSON file beside its socket.

    `factory` is `module:callable`; it is called with `config` (JSON bytes) and returns the engine.
    """

    address: str
    factory: str
    config: msgspec.Raw


EngineFrame = Ready | Outputs | Failed | Rejected | Answered


def encode(message: EngineMessage | EngineFrame) -> bytes:
    """One frame."""
    return msgspec.msgpack.encode(message)


def decode_for_engine(frame: bytes) -> EngineMessage:
    """The message in a frame that the server sent; msgspec.DecodeError for anything else."""
    message: EngineMessage = msgspec.msgpack.decode(frame, type=EngineMessage)
    return message


def decode_for_server(frame: bytes) -> EngineFrame:
    """The message in a frame that the engine sent; msgspec.DecodeError for anything else."""
    message: EngineFrame = msgspec.msgpack.decode(frame, type=EngineFrame)
    return message


def rejection_of(request_id: str, error: UserError | OverloadedError) -> Rejected:
    """How the engine process reports that `Engine.add` raised."""
    if isinstance(error, OverloadedError):
        return Rejected(
            request_id=request_id,
            kind="overloaded",
            error=str(error),
            retry_after_s=error.retry_after_s,
        )
    return Rejected(
        request_id=request_id,
        kind="context" if isinstance(error, ContextLengthError) else "invalid",
        error=str(error),
        param=error.param if isinstance(error, InvalidRequestError) else None,
    )


def rejection_error(rejected: Rejected) -> NonetError:
    """The error that `rejection_of` was given, as far as a client may see it."""
    if rejected.kind == "overloaded":
        return OverloadedError(rejected.error, rejected.retry_after_s)
    if rejected.kind == "context":
        return ContextLengthError(rejected.error, rejected.param)
    return InvalidRequestError(rejected.error, rejected.param)
