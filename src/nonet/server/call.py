"""One HTTP call: its identity, its body, its answer, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import msgspec
import orjson
from starlette.types import Message, Receive, Scope, Send

from nonet.core import limits
from nonet.core.errors import InvalidRequestError, RequestTooLargeError, UserError
from nonet.gateway.answer import Ask, Caller, Reply
from nonet.server.dialect import Dialect, dialect_of
from nonet.server.errors import answer_of
from nonet.server.keys import NOBODY
from nonet.server.limits import maximum
from nonet.server.protocol import ABORT_EXTENSION, BODY_EXTENSION, WHOLE_EXTENSION
from nonet.server.sse import EventStream
from nonet.server.state import ServedModel, ServerState
from nonet.server.wishes import cache_wishes

__all__ = ["Call", "Endpoint", "Sent", "header"]

T = TypeVar("T")
logger = logging.getLogger("nonet.server")


@dataclass(slots=True)
class Sent:
    """An answer as it went out."""

    status: int = 0
    content_type: bytes = b""
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


class Call:
    """The endpoint's view of a request; answers with `respond`, `respond_bytes` or an `EventStream`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, state: ServerState) -> None:
        self.scope = scope
        self.state = state
        self.dialect = dialect_of(scope["path"], header(scope, b"anthropic-version"))
        self.model = state.model  # the one asked for, once the body has named it
        self.key = NOBODY  # the caller's, set once it was checked
        self.request_id = _request_id(header(scope, b"x-request-id"))
        self._receive = receive
        self._raw_send = send
        self.status = 0  # of the answer, once it has begun
        self.ask: Ask | None = (
            None  # what was asked of the gateway, and its reply, once there is one
        )
        self.reply: Reply | None = None
        self.on_sent: Callable[[Call, Sent], None] | None = (
            None  # gets an answer of the exact cache
        )
        self._sent: Sent | None = None
        self._body: bytes | None = None
        self._caller: Caller | None = None

    @property
    def caller(self) -> Caller:
        """Who asks, for the gateway; settled when it is first needed."""
        if self._caller is None:
            self._caller = Caller(
                tenant=self.key.tenant,
                key_id=self.key.key_id,
                wishes=cache_wishes(self.scope),
                limits=self.key.limits,
            )
        return self._caller

    @caller.setter
    def caller(self, caller: Caller) -> None:
        self._caller = caller

    @property
    def tenant(self) -> str:
        """Whose caches and objects the call may see; "" on a server without keys."""
        return self.key.tenant

    def choose_model(self, name: str | None) -> ServedModel:
        """The call is for this model; NotFoundError when it is not served here."""
        self.model = self.state.find_model(name)
        return self.model

    def replied(self, ask: Ask, reply: Reply) -> None:
        """The gateway has taken the ask; its reply's outcome goes into the answer's head."""
        self.ask, self.reply = ask, reply
        if self.on_sent is not None and reply.outcome.entry is not None:
            self._sent = Sent()

    async def json(self, schema: type[T], limit: int | None = None) -> T:
        """The body as `schema`; the errors name the field. `limit` bytes are taken, those of the options when None."""
        body = await self.body(limit)
        try:
            return msgspec.json.decode(body, type=schema)
        except msgspec.ValidationError as error:
            message, param = _explain(str(error))
            raise InvalidRequestError(message, param) from None
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f"the body is not JSON: {error}") from None
        except UnicodeDecodeError:
            raise InvalidRequestError("the body is not valid UTF-8") from None
        except RecursionError:
            raise InvalidRequestError("the body nests too deeply; flatten it") from None

    async def respond(self, value: object, status: int = 200) -> None:
        await self.respond_bytes(orjson.dumps(value), status=status)

    async def respond_bytes(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        head = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *self._id_headers(),
            *headers,
        ]
        whole = self.scope.get("extensions", {}).get(WHOLE_EXTENSION)
        if whole is not None and self._sent is None:
            told = head if self.reply is None else head + self.reply.outcome.all_headers()
            if whole["answer"](self.scope, status, told, body):
                self.began(status)
                return
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def respond_chunks(
        self, chunks: AsyncIterator[bytes], num_bytes: int, content_type: bytes
    ) -> None:
        """Answer with bytes that come piece by piece and are `num_bytes` together."""
        await self.body()
        headers = [
            (b"content-type", content_type),
            (b"content-length", str(num_bytes).encode()),
            *self._id_headers(),
        ]
        async with self.while_connected():
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            async for chunk in chunks:
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: Exception) -> None:
        """Answer with the error object, unless an answer has begun."""
        if self.status:
            self.cut()
            return
        answer = answer_of(error, self.dialect, self.request_id)
        await self.respond_bytes(answer.body, status=answer.status, headers=answer.headers)

    def event_stream(self) -> EventStream:
        """A stream whose unsent bytes are those that wait in the gateway's reply."""
        return EventStream(
            self._send,
            self._id_headers(),
            lambda: self.reply.pending_bytes() if self.reply is not None else 0,
            self.cut,
        )

    def cut(self) -> None:
        """Drop the connection without waiting for its buffer to empty."""
        extension = self.scope.get("extensions", {}).get(ABORT_EXTENSION)
        if extension is not None:
            extension["transport"].abort()

    def while_connected(self) -> _WhileConnected:
        """A block that is cancelled, quietly, when the client leaves. The body must have been read."""
        return _WhileConnected(self._receive)

    def began(self, status: int) -> None:
        """The head of the answer goes out."""
        self.status = status
        self.state.metrics.responded(status)

    def _id_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The request id, under each name that the client may look for."""
        value = self.request_id.encode()
        if self.dialect is Dialect.ANTHROPIC:
            return ((b"x-request-id", value), (b"request-id", value))
        return ((b"x-request-id", value),)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began(message["status"])
            if self.reply is not None:
                message["headers"] = [*message["headers"], *self.reply.outcome.all_headers()]
        if self._sent is not None:
            self._keep(self._sent, message)
        await self._raw_send(message)

    def _keep(self, sent: Sent, message: Message) -> None:
        if message["type"] == "http.response.start":
            sent.status = message["status"]
            sent.content_type = dict(message["headers"])[b"content-type"]
            return
        sent.parts.append(message["body"])
        if not message["more_body"] and self.on_sent is not None:
            self.on_sent(self, sent)

    async def body(self, limit: int | None = None) -> bytes:
        """The request's body; it is read once."""
        if self._body is None:
            most = limit or self.state.config.max_body_bytes
            if BODY_EXTENSION in self.scope.get("extensions", {}):
                part = _part(await self._receive())
                if len(part) > most:
                    raise _too_large(most)
                self._body = part
            else:
                self._body = b"".join([part async for part in self.body_parts(most)])
        return self._body

    async def body_parts(self, limit: int, limit_s: str = "body_s") -> AsyncGenerator[bytes, None]:
        """The body as it comes, instead of `body`; RequestTooLargeError beyond `limit` bytes. `limit_s` names the row
        of the time that it may take."""
        declared = header(self.scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        size = 0
        end_s = time.monotonic() + maximum(limit_s)
        is_more = True
        while is_more:
            message = await self._next_part(end_s, limit_s)
            part = _part(message)
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            is_more = message.get("more_body", False)
            yield part

    async def _next_part(self, end_s: float, limit_s: str) -> Message:
        if BODY_EXTENSION in self.scope.get("extensions", {}):
            return await self._receive()
        try:
            async with asyncio.timeout(end_s - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            raise InvalidRequestError(
                f"the body did not arrive within {maximum(limit_s)} s"
            ) from None


class Endpoint:
    """An ASGI endpoint around an async function of a `Call`; every error becomes an answer."""

    def __init__(self, run: Callable[[Call], Awaitable[None]]) -> None:
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope["nonet.call"])

    async def answer(self, call: Call) -> None:
        try:
            await self._run(call)
        except UserError as error:
            await call.fail(error)
        except Exception as error:
            if answer_of(error).status == 500:
                logger.exception("event=request_failed id=%s", call.request_id)
            await call.fail(error)


class _WhileConnected:
    """Cancels the task inside when a disconnect arrives; leaves no trace of that cancellation outside."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._watch = asyncio.create_task(self._wait())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        assert self._watch is not None
        assert self._task is not None
        self._watch.cancel()
        if not self._is_gone:
            return False
        self._task.uncancel()
        return kind is not None and issubclass(kind, asyncio.CancelledError)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        assert self._task is not None
        self._is_gone = True
        self._task.cancel()


def header(scope: Scope, name: bytes) -> str | None:
    """The first header called `name` (lower case)."""
    known = scope.get("nonet.headers")
    if known is None:
        known = scope["nonet.headers"] = dict(reversed(scope["headers"]))
    value = known.get(name)
    return None if value is None else bytes(value).decode("latin-1")


def _request_id(given: str | None) -> str:
    """The client's id when it is short and printable, else a new one."""
    if given and given.isascii() and given.isprintable():
        longest = limits.LIMITS["request_id"].max_length or 0
        if len(given) <= longest:
            return given
    return f"{random.getrandbits(128):032x}"


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise InvalidRequestError("the client left before its body was complete")
    return bytes(message.get("body", b""))


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"the body is over {limit} bytes, the most that is taken")


def _explain(message: str) -> tuple[str, str | None]:
    """msgspec's sentence and the path in it, as the client would write it."""
    text, _, place = message.partition(" - at `")
    path = place.rstrip("`").removeprefix("$.").removeprefix("$")
    if not path:
        return f"the body is wrong: {text}", None
    return f"{path}: {text}", path.partition("[")[0].partition(".")[0]
