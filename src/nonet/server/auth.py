"""Who may call: API keys, deny by default, and which Host headers are ours.

Keys are kept as SHA-256 only. Every path needs a key when there are keys, whether a route exists or not; the open
paths are the probes of an orchestrator.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from nonet.config.schema import ServerConfig
from nonet.core.errors import AuthenticationError, ConfigError, InvalidRequestError

__all__ = ["OPEN_PATHS", "HostList", "KeyRing", "is_loopback", "read_keys", "refuse_open_bind"]

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
LOCAL_NAMES = frozenset({"localhost", "ip6-localhost"})


class KeyRing:
    """The API keys that may call; empty means that no key is asked for.

    >>> ring = KeyRing(["secret"])
    >>> ring.tenant_of("Bearer secret") == hashlib.sha256(b"secret").hexdigest()
    True
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple({hashlib.sha256(key.encode()).digest() for key in keys})

    @property
    def is_empty(self) -> bool:
        return not self._digests

    def tenant_of(self, authorization: str | None, x_api_key: str | None = None) -> str:
        """The hash that names the caller, "" without keys; AuthenticationError for anybody else.

        The key comes in either header; `authorization` counts where both are given. Both are as HTTP has them: bytes
        read as Latin-1, so that any key can be written.

        Each stored hash is compared, in constant time, so that the time taken tells nothing about the keys.
        """
        if self.is_empty:
            return ""
        if authorization is None and x_api_key is None:
            raise AuthenticationError(
                "no API key was given; send 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
            )
        scheme, key = "bearer", x_api_key or ""
        if authorization is not None:
            scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise AuthenticationError(
                "the API key is not known; check 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
            )
        return digest.hex()


class HostList:
    """Host headers that are answered: the bound address, local names, plain addresses, and those configured.

    A page on the web can make a browser call a local server under the page's own name (DNS rebinding); it cannot do
    so under an address or a local name.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._any = "*" in config.allowed_hosts
        self._names = LOCAL_NAMES | {
            _host_of(name) for name in (config.host, *config.allowed_hosts)
        }

    def check(self, host_header: str | None) -> None:
        """Raise InvalidRequestError for a name that is not ours; a missing header comes from no browser."""
        if self._any or host_header is None:
            return
        host = _host_of(host_header)
        if host not in self._names and not _is_address(host):
            raise InvalidRequestError(
                f"the Host {host_header[:100]!r} is not served here; add it to server.allowed_hosts"
            )


def read_keys(config: ServerConfig) -> list[str]:
    """Keys of the configuration and of its key file; ConfigError for an unreadable file or an empty key."""
    keys = list(config.api_keys)
    if config.api_key_file is not None:
        try:
            text = Path(config.api_key_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"api_key_file {config.api_key_file!r} cannot be read: {error}"
            ) from None
        keys += [line.strip() for line in text.splitlines() if line.strip()]
        if not keys:
            raise ConfigError(
                f"api_key_file {config.api_key_file!r} holds no key; write one per line"
            )
    if any(not key.strip() for key in keys):
        raise ConfigError("an API key is empty; remove it or give it characters")
    return keys


def refuse_open_bind(config: ServerConfig, keys: list[str]) -> None:
    """ConfigError when others than this machine could call without a key."""
    if not keys and not is_loopback(config.host):
        raise ConfigError(
            f"listening on {config.host!r} without an API key would let anybody who reaches this machine use it; "
            "set api_keys or api_key_file, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server bound to `host`."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _host_of(header: str) -> str:
    """`Host` without its port, in lower case."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text if text.count(":") > 1 else text.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
