"""Chat completions that are kept (`store`): /v1/chat/completions by id, their list, their messages, their metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from nonet.core.errors import InvalidRequestError, NonetError, NotFoundError
from nonet.server.call import Call
from nonet.server.delivery import StreamShape, extend_choice
from nonet.server.generation import ChoiceText, Usage
from nonet.server.limits import check_length, check_metadata, maximum
from nonet.server.openai.schemas import ChatMessage, ChatRequest
from nonet.server.paging import cut_page, limit_of, listed, order_of, query_of
from nonet.store.completions import CompletionRecord, CompletionStore

__all__ = [
    "ChatKeeper",
    "change_chat",
    "check_stored",
    "delete_chat",
    "list_chat_messages",
    "list_chats",
    "show_chat",
]

DEFAULT_PAGE = 20
NOTED = "metadata["  # metadata[key]=value, behind the question mark


class _ChangeChat(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/chat/completions/{completion_id}."""

    metadata: dict[str, str] | None


async def list_chats(call: Call) -> None:
    """Those of a model or with all of some metadata, if asked so; the oldest first unless asked for otherwise."""
    store = _stored(call)
    query = query_of(call)
    metadata = {
        name.removeprefix(NOTED)[:-1]: value
        for name, value in query.items()
        if name.startswith(NOTED) and name.endswith("]")
    }
    check_metadata(metadata)
    limit = limit_of(query, default=DEFAULT_PAGE, most=maximum("page"))
    found = await store.page(
        call.tenant,
        model=query.get("model"),
        metadata=metadata,
        after=query.get("after"),
        limit=limit + 1,
        order=order_of(query, default="asc"),
    )
    page = [_told(record) for record in found[:limit]]
    await call.respond(listed(page, has_more=len(found) > limit))


async def show_chat(call: Call) -> None:
    await call.respond(_told(await _asked(call)))


async def list_chat_messages(call: Call) -> None:
    """The messages that it was asked with, in the order in which they came unless asked for otherwise."""
    record = await _asked(call)
    query = query_of(call)
    messages = msgspec.json.decode(record.messages, type=list[ChatMessage])
    told = [_told_message(record, number, one) for number, one in enumerate(messages)]
    if order_of(query, default="asc") == "desc":
        told.reverse()
    limit = limit_of(query, default=DEFAULT_PAGE, most=maximum("page"))
    await call.respond(cut_page(told, limit, query.get("after")))


async def change_chat(call: Call) -> None:
    """Replace its metadata."""
    store, completion_id = _stored(call), _asked_id(call)
    body = await call.json(_ChangeChat)
    metadata = body.metadata or {}
    check_metadata(metadata)
    await call.respond(_told(await store.note(call.tenant, completion_id, metadata)))


async def delete_chat(call: Call) -> None:
    store, completion_id = _stored(call), _asked_id(call)
    await store.delete(call.tenant, completion_id)
    await call.respond({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})


def check_stored(call: Call, body: ChatRequest) -> None:
    """What is refused before any work is done."""
    check_metadata(body.metadata or {})
    if body.store and call.state.completions is None:
        raise InvalidRequestError(
            "this server stores no chat completions; start it with --data-dir, or leave store out",
            "store",
        )


class ChatKeeper:
    """Stores a completion once it is whole, before its end is told."""

    def __init__(
        self,
        call: Call,
        body: ChatRequest,
        num_choices: int,
        build: Callable[[list[ChoiceText]], dict[str, Any]],
    ) -> None:
        """`build` makes the answer of whole choices."""
        # An answer of the cache is stored like any other, so the bytes of this one are not sent again.
        call.on_sent = None
        self._call = call
        self._body = body
        self._build = build
        self._choices = [ChoiceText(choice) for choice in range(num_choices)]
        self._answer: dict[str, Any] | None = None

    def whole(self, choices: list[ChoiceText]) -> dict[str, Any]:
        """The answer, to be sent as it is stored."""
        self._answer = self._build(choices)
        return self._answer | {"metadata": self._body.metadata or {}}

    def gathering(self, shape: StreamShape) -> StreamShape:
        """The same events; what they tell is gathered on the way."""
        return _Gathering(shape, self._choices)

    async def keep(self) -> None:
        store = self._call.state.completions
        assert store is not None, "checked before"
        answer = self._answer or self._build(self._choices)
        await store.put(
            CompletionRecord(
                completion_id=answer["id"],
                tenant=self._call.tenant,
                model=answer["model"],
                created_s=float(answer["created"]),
                metadata=self._body.metadata or {},
                messages=msgspec.json.encode(self._body.messages),
                answer=orjson.dumps(answer),
            )
        )


class _Gathering:
    """Events of a stream; its pieces are added to `choices`."""

    def __init__(self, shape: StreamShape, choices: list[ChoiceText]) -> None:
        self._shape = shape
        self._choices = choices

    def opening(self, usage: Usage) -> bytes:
        return self._shape.opening(usage)

    def piece(self, piece: ChoiceText) -> bytes:
        extend_choice(self._choices[piece.choice], piece)
        return self._shape.piece(piece)

    def ending(self, usage: Usage) -> bytes:
        return self._shape.ending(usage)

    def failure(self, error: NonetError) -> bytes:
        return self._shape.failure(error)


def _stored(call: Call) -> CompletionStore:
    """NotFoundError on a server that stores none."""
    if call.state.completions is None:
        raise NotFoundError("this server stores no chat completions; start it with --data-dir")
    return call.state.completions


async def _asked(call: Call) -> CompletionRecord:
    return await _stored(call).get(call.tenant, _asked_id(call))


def _asked_id(call: Call) -> str:
    completion_id: str = call.scope["path_params"]["completion_id"]
    check_length("name", len(completion_id), "completion_id")
    return completion_id


def _told(record: CompletionRecord) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(record.answer)
    return answer | {"metadata": record.metadata}


def _told_message(record: CompletionRecord, number: int, message: ChatMessage) -> dict[str, Any]:
    """Content that came in parts is told in parts."""
    has_parts = isinstance(message.content, list)
    given = msgspec.to_builtins(message)
    told = {name: value for name, value in given.items() if value is not None}
    return told | {
        "id": f"{record.completion_id}-{number}",
        "content": None if has_parts else message.content,
        "content_parts": given["content"] if has_parts else None,
        "refusal": None,
    }
