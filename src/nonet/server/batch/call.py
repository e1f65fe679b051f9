"""One line of a batch as a call of its endpoint: the same code as over HTTP, on the terms of a batch.

The endpoint reads the body from here and sends its answer here. The caller's service class is `batch` whatever the
line says, and the ledger's row comes here too, to be written with the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
from starlette.types import Message

from nonet.core.errors import AuthenticationError, InvalidRequestError, NonetError
from nonet.gateway.answer import Caller
from nonet.server.anthropic.messages import create_message
from nonet.server.call import Call, Endpoint
from nonet.server.keys import NOBODY, ApiKey
from nonet.server.openai.chat import chat_completions
from nonet.server.openai.completions import completions
from nonet.server.openai.embeddings import embeddings
from nonet.server.openai.responses.create import create_response
from nonet.server.protocol import BODY_EXTENSION
from nonet.server.state import ServerState
from nonet.store.batch_records import LineUsage
from nonet.telemetry.ledger import LedgerRow

__all__ = ["LineAnswer", "answer_line"]

ENDPOINTS: Mapping[str, Callable[[Call], Awaitable[None]]] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/v1/responses": create_response,
    "/v1/messages": create_message,
}
TEMPORARY = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What the endpoint answered, and what goes into the books with it."""

    status: int
    body: bytes
    request_id: str
    usage: LineUsage
    rows: tuple[LedgerRow, ...]
    retry_after_s: float | None  # None: this answer is for good


class _Terms(msgspec.Struct, frozen=True):
    """What of a body has another meaning, or none, in a batch."""

    stream: bool | None = None
    service_tier: str | None = None


@dataclass(slots=True)
class _Taken:
    """The answer as it is sent."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.parts.append(message["body"])


class _LineCall(Call):
    """A call that no connection carries."""

    def began(self, status: int) -> None:
        """A line's answer is no HTTP response and is not counted as one."""
        self.status = status


async def answer_line(
    state: ServerState, endpoint: str, key_id: str, body: bytes, now: float
) -> LineAnswer:
    """Run one request. Errors are answers too; cancelling it aborts what runs. `now` is Unix time."""
    taken, rows = _Taken(), list[LedgerRow]()
    key, refusal = NOBODY, None
    try:
        key = _key(state, key_id, now)
        body = _checked(body)
    except NonetError as error:
        refusal = error
    receive = _Body(body).receive
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": endpoint,
        "query_string": b"",
        "headers": [],
        "path_params": {},
        "extensions": {BODY_EXTENSION: {}},
    }
    call = _LineCall(scope, receive, taken.send, state)
    call.key = key
    call.caller = Caller(
        tenant=key.tenant,
        key_id=key.key_id,
        limits=key.limits,
        service_class="batch",
        book=rows.append,
    )
    if refusal is not None:
        await call.fail(refusal)
    else:
        await Endpoint(ENDPOINTS[endpoint]).answer(call)
    return LineAnswer(
        status=taken.status,
        body=b"".join(taken.parts),
        request_id=call.request_id,
        usage=_usage(call, taken.status),
        rows=tuple(rows) if taken.status == 200 else (),
        retry_after_s=_retry_after_s(taken),
    )


class _Body:
    """A body that is there at once, and then a client who does not leave."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": body or b"", "more_body": False}


def _key(state: ServerState, key_id: str, now: float) -> ApiKey:
    """The key that made the batch, as it is now."""
    if not key_id and state.keys.is_open:
        return NOBODY
    key = next((key for key in state.keys.all() if key.key_id == key_id), None)
    if key is None or (key.expires_s is not None and now >= key.expires_s):
        raise AuthenticationError("the API key that made this batch was revoked or has expired")
    return key


def _checked(body: bytes) -> bytes:
    """The body without a service tier of its own. InvalidRequestError for a stream."""
    try:
        terms = msgspec.json.decode(body, type=_Terms)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body  # the endpoint has the words for it
    if terms.stream:
        raise InvalidRequestError("a batch has no streams; leave stream out", "stream")
    if terms.service_tier is None:
        return body
    fields = orjson.loads(body)
    del fields["service_tier"]
    return orjson.dumps(fields)


def _usage(call: Call, status: int) -> LineUsage:
    if call.reply is None or status != 200:
        return LineUsage()
    usage = call.reply.outcome.total or call.reply.usage
    return LineUsage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        thought_tokens=usage.thought_tokens,
    )


def _retry_after_s(taken: _Taken) -> float | None:
    if taken.status not in TEMPORARY:
        return None
    return float(taken.headers.get(b"retry-after", b"1"))
