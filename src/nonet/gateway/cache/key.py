"""When two asks have one answer: a SHA-256 over everything in an ask, but for a short list of what cannot matter.

The list names what is left out, not what goes in: a field that is added to a request later is part of the key until
somebody shows that it need not be.
"""

from __future__ import annotations

import hashlib

import msgspec

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.gateway.answer import Ask

__all__ = ["NOT_IN_KEY", "ask_key", "is_deterministic", "partition_key"]

VERSION = 1  # of the key and of what is stored under it

# request_id is made by the server for each call; priority and service_class say when a request runs, leases what stays
# of its prompt: none says what the answer is.
NOT_IN_KEY = frozenset({"leases", "priority", "request_id", "service_class"})


def ask_key(ask: Ask, fingerprint: bytes) -> bytes:
    """The key of an ask to the model that `fingerprint` stands for. Stream or whole is not in it."""
    settings = ask.conversation.settings if ask.conversation is not None else None
    parts = (
        VERSION,
        fingerprint,
        ask.caller.tenant,
        ask.echoed,
        ask.encoder,
        settings,
        [_fields(request) for request in ask.requests],
    )
    return _digest(parts)


def partition_key(ask: Ask, fingerprint: bytes) -> bytes:
    """The key of everything in a conversation but the text of its last message: asks that differ in that text alone."""
    assert ask.conversation is not None
    *before, last = ask.conversation.messages
    asked = {name: value for name, value in last.items() if name != "content"}
    parts = (
        VERSION,
        fingerprint,
        ask.caller.tenant,
        ask.echoed,
        ask.encoder,
        ask.conversation.settings,
        [*before, asked],
        [_fields(request, without="prompt_ids") for request in ask.requests],
    )
    return _digest(parts)


def is_deterministic(ask: Ask) -> bool:
    """Whether asking again would bring the same tokens."""
    return all(
        request.params.is_greedy or request.params.seed is not None for request in ask.requests
    )


def _digest(parts: tuple[object, ...]) -> bytes:
    plain = msgspec.to_builtins(parts, str_keys=True)
    return hashlib.sha256(msgspec.msgpack.encode(plain, order="deterministic")).digest()


def _fields(request: Request, without: str = "") -> dict[str, object]:
    """Every field by name, defaults too: a default that changes must change the key."""
    fields: dict[str, object] = {
        name: getattr(request, name)
        for name in request.__struct_fields__
        if name not in NOT_IN_KEY and name != without
    }
    fields["params"] = _params(request.params)
    return fields


def _params(params: SamplingParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in params.__struct_fields__}
