"""API keys: who they speak for, what they may use, and where they are read from. Of a secret only the SHA-256 is kept.

A key file has one secret per line, or, ending in .toml, a table per key:

    [[key]]
    sha256 = "..."            # or: secret = "..."
    name = "evaluation"
    tenant = "research"       # keys of one tenant share cached answers and prefixes; by default a key is its own
    requests_per_minute = 60
    tokens_per_minute = 100000
    money_per_day = "5.00"
    expires = 2027-01-01
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from nonet.config.schema import ServerConfig
from nonet.core.errors import ConfigError
from nonet.gateway.answer import KeyLimits
from nonet.telemetry.prices import picos_of

__all__ = ["NOBODY", "ApiKey", "key_from_secret", "limits_of", "read_keys", "unix_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key as it is kept."""

    digest: bytes
    tenant: str
    name: str = ""
    limits: KeyLimits | None = None
    expires_s: float | None = None  # Unix time

    @property
    def key_id(self) -> str:
        """Names the key without telling it."""
        return self.digest.hex()[:16]


# Who calls a server that asks for no key.
NOBODY = ApiKey(digest=b"", tenant="")


def key_from_secret(secret: str, *, tenant: str | None = None, name: str = "") -> ApiKey:
    digest = hashlib.sha256(secret.encode()).digest()
    return ApiKey(digest=digest, tenant=digest.hex() if tenant is None else tenant, name=name)


def read_keys(config: ServerConfig) -> list[ApiKey]:
    """Keys of the configuration and of its key file; ConfigError for an unreadable file or an empty key."""
    secrets = list(config.api_keys)
    keys: list[ApiKey] = []
    if config.api_key_file is not None:
        path = Path(config.api_key_file)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"api_key_file {config.api_key_file!r} cannot be read: {error}"
            ) from None
        if path.suffix == ".toml":
            keys = _from_toml(text, config.api_key_file)
        else:
            secrets += [line.strip() for line in text.splitlines() if line.strip()]
        if not keys and len(secrets) == len(config.api_keys):
            raise ConfigError(
                f"api_key_file {config.api_key_file!r} holds no key; write one per line"
            )
    if any(not secret.strip() for secret in secrets):
        raise ConfigError("an API key is empty; remove it or give it characters")
    return [key_from_secret(secret) for secret in secrets] + keys


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of a key file."""

    sha256: str | None = None
    secret: str | None = None
    name: str = ""
    tenant: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    money_per_day: str | None = None
    expires: Any = None  # a day, a time, or the text of one


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: list[_Row] = []


def _from_toml(text: str, where: str) -> list[ApiKey]:
    try:
        rows = msgspec.convert(tomllib.loads(text), _File).key
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"api_key_file {where!r} is wrong: {error}") from None
    return [
        _key(row, f"api_key_file {where!r}, key {number}") for number, row in enumerate(rows, 1)
    ]


def _key(row: _Row, where: str) -> ApiKey:
    if (row.sha256 is None) == (row.secret is None):
        raise ConfigError(f"{where}: give either sha256 or secret")
    if row.secret is not None:
        if not row.secret.strip():
            raise ConfigError(f"{where}: secret is empty; give it characters")
        digest = hashlib.sha256(row.secret.encode()).digest()
    else:
        if re.fullmatch(r"[0-9a-fA-F]{64}", row.sha256 or "") is None:
            raise ConfigError(f"{where}: sha256 is not 64 hexadecimal digits")
        digest = bytes.fromhex(row.sha256 or "")
    if row.tenant is not None and not row.tenant.strip():
        raise ConfigError(f"{where}: tenant is empty; name one, or leave it out")
    return ApiKey(
        digest=digest,
        tenant=digest.hex() if row.tenant is None else row.tenant,
        name=row.name,
        limits=limits_of(row.requests_per_minute, row.tokens_per_minute, row.money_per_day, where),
        expires_s=None if row.expires is None else unix_time(row.expires, f"{where}: expires"),
    )


def limits_of(
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    money_per_day: str | None,
    where: str,
) -> KeyLimits | None:
    """Checked limits; None when all are."""
    if requests_per_minute is None and tokens_per_minute is None and money_per_day is None:
        return None
    for name, value in (
        ("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute),
    ):  # fmt: skip
        if value is not None and value < 1:
            raise ConfigError(f"{where}: {name} is {value}; give at least 1, or leave it out")
    if money_per_day is not None:
        picos_of(money_per_day, f"{where}: money_per_day")
    return KeyLimits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        money_per_day=money_per_day,
    )


def unix_time(when: object, where: str) -> float:
    """Unix seconds of a day, which begins at midnight, or of a time; UTC where no zone is given."""
    try:
        moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    except ValueError:
        moment = None
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if not isinstance(moment, datetime):
        raise ConfigError(f"{where} is {str(when)[:50]!r}; give a day such as 2027-01-01")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
