"""Answers of the exact cache as they were sent, by the bytes of the request: no parsing, no template, no tokens.

A request whose bytes were answered from the cache before is answered by the same bytes again, with an id and a time of
its own, as long as the cache holds that very entry. It takes the way through the pipeline all the same, so limits see
it and the ledger books it.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import msgspec

from nonet.gateway.answer import Ask, CacheWishes
from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.cache.stored import Entry
from nonet.server.call import Call, Sent

__all__ = ["Replays"]

# Routes whose answers carry one id, which is that of the ask, and one time.
ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})
# With any other the request is more than its body.
NO_WISHES = CacheWishes()
CREATED = re.compile(rb'"created":\d+')


@dataclass(frozen=True, slots=True)
class _Held:
    """An answer ready to be sent again."""

    entry: Entry
    ask: Ask
    content_type: bytes
    body: bytes
    name: bytes  # the answer's id, wherever it occurs in the body
    created: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.body) + 1024


class Replays:
    """The answers held, the least recently used first to go."""

    def __init__(self, cache: ExactCache, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._shelf = cache.shelf
        self._max_bytes = max_bytes
        self._held: OrderedDict[bytes, _Held] = OrderedDict()
        self._num_bytes = 0

    async def answer(self, call: Call) -> None:
        """Answer the call if its bytes are known; else leave it, and look at its answer when it is sent."""
        scope = call.scope
        if scope["path"] not in ROUTES or scope["method"] != "POST":
            return
        if call.caller.wishes != NO_WISHES:
            return
        body = await call.body()
        key = b"\0".join((scope["path"].encode(), call.tenant.encode(), body))
        digest = hashlib.sha256(key).digest()
        held = self._held.get(digest)
        if held is not None and self._shelf.holds(held.entry) and _is_served(held.ask, call):
            await self._send(call, digest, held)
        else:
            call.on_sent = partial(self._consider, digest)

    async def _send(self, call: Call, digest: bytes, held: _Held) -> None:
        """Should the entry go while a layer waits, the model makes the same answer again, and that is booked."""
        self._held.move_to_end(digest)
        name = f"{held.ask.ask_id.partition('-')[0]}-{random.getrandbits(128):032x}"
        ask = _renamed(held, name, call)
        reply = await call.state.pipeline.answer(ask)
        async for _ in reply.pieces:
            pass
        call.replied(ask, reply)
        metrics = call.state.metrics
        for _ in range(ask.num_choices):
            metrics.finished(held.entry.finish)
        body = held.body.replace(held.name, name.encode())
        body = body.replace(held.created, b'"created":%d' % time.time())
        await call.respond_bytes(body, content_type=held.content_type)

    def _consider(self, digest: bytes, call: Call, sent: Sent) -> None:
        """Keep an answer that came from the cache and can be sent again."""
        ask, reply = call.ask, call.reply
        if ask is None or reply is None or sent.status != 200:
            return
        entry = reply.outcome.entry
        name = ask.ask_id.rpartition("-")[0].encode()
        created = set(CREATED.findall(sent.body))
        if not isinstance(entry, Entry) or name not in sent.body or len(created) != 1:
            return
        held = _Held(entry, ask, sent.content_type, sent.body, name, created.pop())
        self._drop(digest)
        self._held[digest] = held
        self._num_bytes += held.num_bytes
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._held)))

    def _drop(self, digest: bytes) -> None:
        held = self._held.pop(digest, None)
        if held is not None:
            self._num_bytes -= held.num_bytes


def _is_served(ask: Ask, call: Call) -> bool:
    """Another adapter may have taken the name since."""
    adapter_id = ask.requests[0].adapter_id
    known = call.state.engine.adapters.adapters if adapter_id else ()
    return not adapter_id or any(adapter.adapter_id == adapter_id for adapter in known)


def _renamed(held: _Held, name: str, call: Call) -> Ask:
    requests = [
        msgspec.structs.replace(request, request_id=f"{name}-{number}")
        for number, request in enumerate(held.ask.requests)
    ]
    return msgspec.structs.replace(
        held.ask, requests=tuple(requests), caller=call.caller, held=held.entry
    )
