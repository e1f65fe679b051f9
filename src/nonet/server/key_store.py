"""Keys made while the server runs: in the database as hashes, in the ring at once, and there again after a restart."""

from __future__ import annotations

import dataclasses
import secrets
import sqlite3
import time

import msgspec

from nonet.gateway.answer import KeyLimits
from nonet.server.auth import KeyRing
from nonet.server.keys import ApiKey, key_from_secret
from nonet.store.database import Database

__all__ = ["KeyStore", "stored_keys"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS api_key (
    digest BLOB PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    limits TEXT NOT NULL,
    expires_s REAL,
    made_s REAL NOT NULL,
    revoked_s REAL
)
"""
EXISTS = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'api_key'"
SELECT = "SELECT digest, tenant, name, limits, expires_s, revoked_s FROM api_key"
INSERT = "INSERT INTO api_key (digest, tenant, name, limits, expires_s, made_s) VALUES (?, ?, ?, ?, ?, ?)"
REVOKE = "UPDATE api_key SET revoked_s = ? WHERE digest = ?"


def stored_keys(database: Database | None) -> tuple[list[ApiKey], bool]:
    """The keys that were made and not revoked, and whether any was ever made. Before the server's threads start."""

    def read(
        connection: sqlite3.Connection,
    ) -> list[tuple[bytes, str, str, str, float | None, float | None]]:
        if connection.execute(EXISTS).fetchone() is None:
            return []
        return connection.execute(SELECT).fetchall()

    rows = database.read_now(read) if database is not None else []
    keys = [
        ApiKey(
            digest=digest,
            tenant=tenant,
            name=name,
            limits=msgspec.json.decode(limits, type=KeyLimits | None),
            expires_s=expires_s,
        )
        for digest, tenant, name, limits, expires_s, revoked_s in rows
        if revoked_s is None
    ]
    return keys, bool(rows)


class KeyStore:
    """Makes and revokes keys."""

    def __init__(self, database: Database, ring: KeyRing) -> None:
        self._database = database
        self._ring = ring

    async def create(
        self, name: str, tenant: str | None, limits: KeyLimits | None, expires_s: float | None
    ) -> tuple[str, ApiKey]:
        """A new secret, to be shown once, and its key."""
        secret = f"sk-nonet-{secrets.token_urlsafe(32)}"
        key = dataclasses.replace(
            key_from_secret(secret, tenant=tenant, name=name), limits=limits, expires_s=expires_s
        )
        row = (
            key.digest,
            key.tenant,
            name,
            msgspec.json.encode(limits).decode(),
            expires_s,
            time.time(),
        )

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(SCHEMA)
            connection.execute(INSERT, row)

        await self._database.write(write)
        self._ring.add(key)
        return secret, key

    async def revoke(self, key_id: str) -> bool:
        """Whether there was such a key; one of the configuration is back after a restart."""
        digests = [key.digest for key in self._ring.all() if key.key_id == key_id]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(SCHEMA)
            for digest in digests:
                connection.execute(REVOKE, (time.time(), digest))

        await self._database.write(write)
        return self._ring.revoke(key_id)
