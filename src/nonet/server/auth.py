"""Who may call: API keys, deny by default, and which Host headers are ours.

Every path needs a key when there are keys, whether a route exists or not; the open
paths are the probes of an orchestrator.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from nonet.config.schema import ServerConfig
from nonet.core.errors import AuthenticationError, ConfigError, InvalidRequestError
from nonet.server.keys import NOBODY, ApiKey

__all__ = ["OPEN_PATHS", "HostList", "KeyRing", "is_loopback", "refuse_open_bind"]

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
LOCAL_NAMES = frozenset({"localhost", "ip6-localhost"})


class KeyRing:
    """The API keys that may call; without any, and unless it is locked, no key is asked for.

    >>> ring = KeyRing([key_from_secret("secret")])
    >>> ring.find("Bearer secret").tenant == hashlib.sha256(b"secret").hexdigest()
    True
    """

    def __init__(self, keys: Iterable[ApiKey], *, is_locked: bool = False) -> None:
        self._keys = {key.digest: key for key in keys}
        self._is_locked = is_locked or bool(self._keys)

    @property
    def is_open(self) -> bool:
        """Whether anybody may call. A ring that has held a key is never open again: revoking the last opens nothing."""
        return not self._is_locked

    def add(self, key: ApiKey) -> None:
        self._keys[key.digest] = key
        self._is_locked = True

    def revoke(self, key_id: str) -> bool:
        """Whether there was such a key."""
        gone = [digest for digest, key in self._keys.items() if key.key_id == key_id]
        for digest in gone:
            del self._keys[digest]
        return bool(gone)

    def all(self) -> list[ApiKey]:
        return list(self._keys.values())

    def find(
        self, authorization: str | None, x_api_key: str | None = None, now: float = 0.0
    ) -> ApiKey:
        """The caller's key, NOBODY where none is asked for; AuthenticationError for anybody else.

        The key comes in either header; `authorization` counts where both are given. Both are as HTTP has them: bytes
        read as Latin-1, so that any key can be written. `now` is Unix time.

        Keys are found by their whole SHA-256: how long that takes tells of a hash, from which no key follows.
        """
        if self.is_open:
            return NOBODY
        if authorization is None and x_api_key is None:
            raise AuthenticationError(
                "no API key was given; send 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
            )
        scheme, secret = "bearer", x_api_key or ""
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
        digest = hashlib.sha256(secret.strip().encode("latin-1", "replace")).digest()
        key = self._keys.get(digest)
        if scheme.lower() != "bearer" or key is None or not hmac.compare_digest(digest, key.digest):
            raise AuthenticationError(
                "the API key is not known; check 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
            )
        if key.expires_s is not None and now >= key.expires_s:
            raise AuthenticationError("the API key has expired; ask for a new one")
        return key


class HostList:
    """Host headers that are answered: the bound address, local names, plain addresses, and those configured.

    A page on the web can make a browser call a local server under the page's own name (DNS rebinding); it cannot do
    so under an address or a local name.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._any = "*" in config.allowed_hosts
        self._last = ""  # that was answered: mostly the next is the same
        self._names = LOCAL_NAMES | {
            _host_of(name) for name in (config.host, *config.allowed_hosts)
        }

    def check(self, host_header: str | None) -> None:
        """Raise InvalidRequestError for a name that is not ours; a missing header comes from no browser."""
        if self._any or host_header is None or host_header == self._last:
            return
        host = _host_of(host_header)
        if host not in self._names and not _is_address(host):
            raise InvalidRequestError(
                f"the Host {host_header[:100]!r} is not served here; add it to server.allowed_hosts"
            )
        self._last = host_header


def refuse_open_bind(config: ServerConfig, *, has_keys: bool) -> None:
    """ConfigError when others than this machine could call without a key."""
    if not has_keys and not is_loopback(config.host):
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
