"""The ASGI application: one door that every request passes, and the table of routes behind it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nonet.core.errors import NonetError, UnavailableError
from nonet.gateway.cache.exact import ExactCache
from nonet.server import health
from nonet.server.anthropic.batches import (
    cancel_message_batch,
    create_message_batch,
    delete_message_batch,
    list_message_batches,
    message_batch_results,
    show_message_batch,
)
from nonet.server.anthropic.messages import count_tokens, create_message
from nonet.server.auth import OPEN_PATHS
from nonet.server.call import Call, Endpoint, header
from nonet.server.errors import route_error
from nonet.server.openai.adapters import load_adapter, unload_adapter
from nonet.server.openai.batches import cancel_batch, create_batch, list_batches, show_batch
from nonet.server.openai.chat import chat_completions
from nonet.server.openai.completions import completions
from nonet.server.openai.embeddings import embeddings
from nonet.server.openai.files import (
    create_file,
    delete_file,
    file_content,
    list_files,
    show_file,
)
from nonet.server.openai.models import list_models, show_model
from nonet.server.openai.responses.create import create_response, input_tokens
from nonet.server.openai.responses.stored import (
    cancel_response,
    delete_response,
    list_input_items,
    show_response,
)
from nonet.server.openai.stored_chat import (
    change_chat,
    delete_chat,
    list_chat_messages,
    list_chats,
    show_chat,
)
from nonet.server.openai.tokenize import detokenize, tokenize
from nonet.server.playground import PAGE_PATHS, PAGE_ROUTES
from nonet.server.replays import Replays
from nonet.server.state import ServerState
from nonet.server.usage import usage

__all__ = ["ROUTES", "create_app"]

logger = logging.getLogger("nonet.server")

ROUTES: tuple[tuple[str, str, Callable[[Call], Awaitable[None]]], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("GET", "/v1/chat/completions", list_chats),
    ("GET", "/v1/chat/completions/{completion_id}", show_chat),
    ("POST", "/v1/chat/completions/{completion_id}", change_chat),
    ("DELETE", "/v1/chat/completions/{completion_id}", delete_chat),
    ("GET", "/v1/chat/completions/{completion_id}/messages", list_chat_messages),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/embeddings", embeddings),
    ("POST", "/v1/messages", create_message),
    ("POST", "/v1/responses", create_response),
    ("POST", "/v1/responses/input_tokens", input_tokens),
    ("GET", "/v1/responses/{response_id}", show_response),
    ("DELETE", "/v1/responses/{response_id}", delete_response),
    ("POST", "/v1/responses/{response_id}/cancel", cancel_response),
    ("GET", "/v1/responses/{response_id}/input_items", list_input_items),
    ("POST", "/v1/messages/count_tokens", count_tokens),
    ("POST", "/v1/messages/batches", create_message_batch),
    ("GET", "/v1/messages/batches", list_message_batches),
    ("GET", "/v1/messages/batches/{batch_id}", show_message_batch),
    ("DELETE", "/v1/messages/batches/{batch_id}", delete_message_batch),
    ("POST", "/v1/messages/batches/{batch_id}/cancel", cancel_message_batch),
    ("GET", "/v1/messages/batches/{batch_id}/results", message_batch_results),
    ("POST", "/v1/files", create_file),
    ("GET", "/v1/files", list_files),
    ("GET", "/v1/files/{file_id}", show_file),
    ("DELETE", "/v1/files/{file_id}", delete_file),
    ("GET", "/v1/files/{file_id}/content", file_content),
    ("POST", "/v1/batches", create_batch),
    ("GET", "/v1/batches", list_batches),
    ("GET", "/v1/batches/{batch_id}", show_batch),
    ("POST", "/v1/batches/{batch_id}/cancel", cancel_batch),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{name:path}", show_model),
    ("GET", "/v1/usage", usage),
    ("POST", "/v1/load_lora_adapter", load_adapter),
    ("POST", "/v1/unload_lora_adapter", unload_adapter),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/livez", health.livez),
    ("GET", "/readyz", health.readyz),
    ("GET", "/health", health.health),
    ("GET", "/version", health.version_info),
    ("GET", "/metrics", health.metrics),
    *PAGE_ROUTES,
)


def create_app(state: ServerState) -> ASGIApp:
    """The application over `state`; it starts and stops nothing."""
    router = Starlette(
        routes=[Route(path, Endpoint(run), methods=[method]) for method, path, run in ROUTES],
        exception_handlers={HTTPException: _unrouted},
    )
    router.router.redirect_slashes = False
    return _Door(router, state)


class _Door:
    """Host, key and draining are checked here, before any route is looked up; it also knows who is inside."""

    def __init__(self, inner: ASGIApp, state: ServerState) -> None:
        self._inner = inner
        self._state = state
        cache = next((x for x in state.pipeline.layers if isinstance(x, ExactCache)), None)
        self._replay = Endpoint(Replays(cache).answer) if cache is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        state = self._state
        call = Call(scope, receive, send, state)
        path = scope["path"]
        is_page = path in PAGE_PATHS and scope["method"] in ("GET", "HEAD")
        is_probe = is_page or path in OPEN_PATHS
        try:
            state.hosts.check(header(scope, b"host"))
            if not is_probe:
                call.key = state.keys.find(
                    header(scope, b"authorization"), header(scope, b"x-api-key"), time.time()
                )
                if state.is_draining:
                    raise UnavailableError("the server is shutting down; try another")
        except NonetError as error:
            await call.fail(error)
            return
        if is_probe:
            await self._route(call, receive, send)
            return
        began_s = time.monotonic()
        state.active.add(call)
        try:
            if self._replay is not None:
                await self._replay.answer(call)
            if not call.status:
                await self._route(call, receive, send)
        finally:
            state.active.discard(call)
            if logger.isEnabledFor(logging.INFO):
                logger.info(
                    "event=call id=%s method=%s path=%r status=%d seconds=%.3f",
                    call.request_id,
                    scope["method"],
                    scope["path"][:200],
                    call.status,
                    time.monotonic() - began_s,
                )

    async def _route(self, call: Call, receive: Receive, send: Send) -> None:
        """Call and scope know each other only meanwhile: a cycle would have to wait for the garbage collector."""
        call.scope["nonet.call"] = call
        try:
            await self._inner(call.scope, receive, send)
        finally:
            del call.scope["nonet.call"]


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    call: Call = request.scope["nonet.call"]
    path = request.scope["path"]
    answer = route_error(error.status_code, path, call.dialect, call.request_id)
    call.began(answer.status)
    headers = {key.decode(): value.decode() for key, value in answer.headers}
    headers |= {"content-type": "application/json", "x-request-id": call.request_id}
    if error.headers:
        headers |= dict(error.headers)
    return Response(answer.body, answer.status, headers)
