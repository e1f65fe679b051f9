"""What an operator does to a running server: keys, usage, caches, adapters, draining. Never on the public port.

It listens on a Unix socket that only its owner may open, or on a loopback port with a key of its own.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nonet.config.schema import GatewayConfig
from nonet.core.errors import (
    AuthenticationError,
    ConfigError,
    InvalidRequestError,
    NonetError,
    NotFoundError,
)
from nonet.gateway.cache.kept import KeepsAnswers
from nonet.gateway.limits import check_limits
from nonet.gateway.site import Site
from nonet.server.auth import is_loopback
from nonet.server.call import Call, Endpoint, header
from nonet.server.key_store import KeyStore
from nonet.server.keys import ApiKey, limits_of, unix_time
from nonet.server.openai.adapters import offer_adapter, withdraw_adapter
from nonet.server.state import ServerState
from nonet.server.usage import query, report

__all__ = ["bind_admin", "create_admin_app"]

UNIX = "unix:"

logger = logging.getLogger("nonet.server")


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /keys."""

    name: str = ""
    tenant: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    money_per_day: str | None = None
    expires: str | None = None


class PurgeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /cache/purge."""

    tenant: str | None = None
    dry_run: bool = False


def create_admin_app(
    state: ServerState, site: Site, admin_key: str | None, stop: Callable[[], None]
) -> ASGIApp:
    """The routes over `state`; `stop` begins to drain."""
    desk = _Desk(state, site, stop)
    routes: tuple[tuple[str, str, Callable[[Call], Awaitable[None]]], ...] = (
        ("GET", "/keys", desk.list_keys),
        ("POST", "/keys", desk.create_key),
        ("DELETE", "/keys/{key_id}", desk.revoke_key),
        ("GET", "/usage", desk.usage),
        ("GET", "/cache", desk.show_cache),
        ("POST", "/cache/purge", desk.purge),
        ("GET", "/adapters", desk.list_adapters),
        ("POST", "/adapters", offer_adapter),
        ("DELETE", "/adapters/{name:path}", desk.remove_adapter),
        ("POST", "/drain", desk.drain),
    )
    router = Starlette(
        routes=[Route(path, Endpoint(run), methods=[method]) for method, path, run in routes]
    )
    router.router.redirect_slashes = False
    return _Door(router, state, admin_key)


def bind_admin(config: GatewayConfig) -> socket.socket | None:
    """The socket of `admin`, None without one; ConfigError when it cannot be had or would be open to others."""
    if config.admin is None:
        return None
    if config.admin.startswith(UNIX):
        return _bind_unix(Path(config.admin.removeprefix(UNIX)))
    host, _, port = config.admin.rpartition(":")
    if not is_loopback(host) or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"admin is {config.admin!r}; give unix:PATH, or a loopback address with a port such as 127.0.0.1:8001"
        )
    if not config.admin_key:
        raise ConfigError("admin on a port needs an admin_key; set one, or use admin unix:PATH")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), int(port)))
    except OSError as error:
        listener.close()
        raise ConfigError(f"admin cannot listen on {config.admin}: {error}") from None
    return listener


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        if path.is_socket():
            path.unlink()  # of a server that was killed; a living one holds the database's lock
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"admin cannot listen on {path}: {error}") from None
    finally:
        os.umask(before)
    return listener


class _Door:
    """The admin key, where there is one, and the Host header are checked before any route is looked up."""

    def __init__(self, inner: ASGIApp, state: ServerState, admin_key: str | None) -> None:
        self._inner = inner
        self._state = state
        self._admin_key = admin_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        call = Call(scope, receive, send, self._state)
        try:
            self._state.hosts.check(header(scope, b"host"))
            self._check_key(header(scope, b"authorization"))
        except NonetError as error:
            await call.fail(error)
            return
        scope["nonet.call"] = call
        await self._inner(scope, receive, send)
        logger.info(
            "event=admin method=%s path=%r status=%d",
            scope["method"],
            scope["path"][:200],
            call.status,
        )

    def _check_key(self, authorization: str | None) -> None:
        if self._admin_key is None:
            return
        given = (authorization or "").partition(" ")[2].strip().encode("latin-1", "replace")
        if not hmac.compare_digest(given, self._admin_key.encode()):
            raise AuthenticationError("the admin key is needed; send 'Authorization: Bearer <key>'")


class _Desk:
    """The endpoints."""

    def __init__(self, state: ServerState, site: Site, stop: Callable[[], None]) -> None:
        self._state = state
        self._site = site
        self._stop = stop

    async def list_keys(self, call: Call) -> None:
        await call.respond(
            {"object": "list", "data": [_shown(key) for key in self._state.keys.all()]}
        )

    async def create_key(self, call: Call) -> None:
        """The secret is in this answer and nowhere else."""
        body = await call.json(KeyRequest)
        limits = limits_of(
            body.requests_per_minute, body.tokens_per_minute, body.money_per_day, "the key"
        )
        if limits is not None:
            check_limits(limits, self._site)
        if body.tenant is not None and not body.tenant.strip():
            raise InvalidRequestError("tenant is empty; name one, or leave it out", "tenant")
        expires_s = None if body.expires is None else unix_time(body.expires, "expires")
        secret, key = await self._store().create(body.name, body.tenant, limits, expires_s)
        await call.respond({**_shown(key), "secret": secret}, status=201)

    async def revoke_key(self, call: Call) -> None:
        key_id = call.scope["path_params"]["key_id"]
        if not await self._store().revoke(key_id):
            raise NotFoundError(f"there is no key {key_id[:64]!r}")
        await call.respond({"id": key_id, "revoked": True})

    async def usage(self, call: Call) -> None:
        if self._site.database is None or not self._site.books:
            raise NotFoundError("this server keeps no ledger; start it with --gateway ledger")
        fields = query(call)
        await call.respond(await report(self._site.database, fields, fields.get("tenant")))

    async def show_cache(self, call: Call) -> None:
        """The first cache's numbers, and those of each by name."""
        shown = {cache.name: cache.show() for cache in self._caches()}
        await call.respond({**next(iter(shown.values())), **shown})

    async def purge(self, call: Call) -> None:
        body = await call.json(PurgeRequest)
        count = 0
        for cache in self._caches():
            count += cache.count(body.tenant) if body.dry_run else cache.purge(body.tenant)
        logger.warning(
            "event=purge tenant=%r dry_run=%s entries=%d", body.tenant, body.dry_run, count
        )
        await call.respond({"entries": count, "dry_run": body.dry_run})

    async def list_adapters(self, call: Call) -> None:
        adapters = self._state.engine.adapters.adapters
        await call.respond(
            {"object": "list", "data": [msgspec.to_builtins(adapter) for adapter in adapters]}
        )

    async def remove_adapter(self, call: Call) -> None:
        await withdraw_adapter(call, call.scope["path_params"]["name"])

    async def drain(self, call: Call) -> None:
        """As the first SIGTERM: what runs may finish, what comes is refused, then the server ends."""
        await call.respond({"status": "draining", "active": len(self._state.active)}, status=202)
        self._stop()

    def _store(self) -> KeyStore:
        return KeyStore(self._site.needed_database("making keys"), self._state.keys)

    def _caches(self) -> list[KeepsAnswers]:
        caches: list[KeepsAnswers] = [
            layer for layer in self._state.pipeline.layers if isinstance(layer, KeepsAnswers)
        ]
        if not caches:
            raise NotFoundError("this server has no cache; start it with --gateway exact_cache")
        return caches


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "tenant": key.tenant,
        "limits": None if key.limits is None else msgspec.to_builtins(key.limits),
        "expires": key.expires_s,
    }
