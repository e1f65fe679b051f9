"""Keys, loopback and Host headers."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from nonet.config.schema import ServerConfig
from nonet.core.errors import AuthenticationError, ConfigError, InvalidRequestError
from nonet.server.auth import HostList, KeyRing, is_loopback, refuse_open_bind
from nonet.server.keys import key_from_secret, read_keys


def ring_of(*secrets: str) -> KeyRing:
    return KeyRing([key_from_secret(secret) for secret in secrets])


def test_keys_are_kept_hashed() -> None:
    ring = ring_of("hunter2")
    assert "hunter2" not in repr(vars(ring))
    assert ring.find("bearer hunter2") == ring.find("Bearer  hunter2 ")
    for given in (None, "", "Bearer", "Bearer hunter", "hunter2", "Token hunter2"):
        with pytest.raises(AuthenticationError):
            ring.find(given)


def test_a_key_may_come_in_the_other_header() -> None:
    ring = ring_of("a", "b")
    assert ring.find(None, "a") == ring.find("Bearer a") == ring.find("Bearer a", "b")
    for given in ((None, ""), (None, "c"), ("Bearer c", "a"), ("", "a")):
        with pytest.raises(AuthenticationError):
            ring.find(*given)


def test_tenants_differ_by_key() -> None:
    ring = ring_of("a", "b")
    assert ring.find("Bearer a").tenant != ring.find("Bearer b").tenant
    assert ring.find("Bearer a").key_id != ring.find("Bearer b").key_id
    assert ring_of().find(None).tenant == ""


def test_revoking_the_last_key_opens_nothing() -> None:
    ring = ring_of()
    assert ring.is_open
    key = key_from_secret("a")
    ring.add(key)
    assert ring.find("Bearer a") is key
    assert ring.revoke(key.key_id)
    assert not ring.revoke(key.key_id)
    assert not ring.is_open
    for given in ("Bearer a", None):
        with pytest.raises(AuthenticationError):
            ring.find(given)


def test_keys_expire() -> None:
    ring = KeyRing([dataclasses.replace(key_from_secret("a"), expires_s=100.0)])
    assert ring.find("Bearer a", now=99.9)
    with pytest.raises(AuthenticationError, match="has expired"):
        ring.find("Bearer a", now=100.0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.1", False), ("example.com", False),
        ("localhost.example.com", False),
    ],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_open_bind_needs_a_key() -> None:
    refuse_open_bind(ServerConfig(host="127.0.0.1"), has_keys=False)
    refuse_open_bind(ServerConfig(host="0.0.0.0"), has_keys=True)
    with pytest.raises(ConfigError, match="without an API key"):
        refuse_open_bind(ServerConfig(host="0.0.0.0"), has_keys=False)


def test_key_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(" one \n\ntwo\n")
    found = read_keys(ServerConfig(api_keys=("zero",), api_key_file=str(file)))
    assert found == [key_from_secret(secret) for secret in ("zero", "one", "two")]
    file.write_text("\n")
    for config in (
        ServerConfig(api_key_file=str(file)),
        ServerConfig(api_key_file=str(tmp_path / "missing")),
        ServerConfig(api_keys=(" ",)),
    ):
        with pytest.raises(ConfigError):
            read_keys(config)


def test_key_file_of_tables(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"two").hexdigest()
    file.write_text(
        f"""
        [[key]]
        secret = "one"
        [[key]]
        sha256 = "{digest}"
        name = "evaluation"
        tenant = "research"
        requests_per_minute = 60
        money_per_day = "5.00"
        expires = 2027-01-01
        """
    )
    one, two = read_keys(ServerConfig(api_key_file=str(file)))
    assert one == key_from_secret("one")
    assert (two.digest.hex(), two.name, two.tenant) == (digest, "evaluation", "research")
    assert two.limits is not None
    assert (two.limits.requests_per_minute, two.limits.tokens_per_minute) == (60, None)
    assert two.expires_s == 1_798_761_600.0
    assert KeyRing([one, two]).find("Bearer two", now=0.0) is two


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("[[key]]", "either sha256 or secret"),
        ("[[key]]\nsecret = 'a'\nsha256 = 'b'", "either sha256 or secret"),
        ("[[key]]\nsha256 = 'abc'", "64 hexadecimal"),
        ("[[key]]\nsecret = ' '", "secret is empty"),
        ("[[key]]\nsecret = 'a'\ntenant = ''", "tenant is empty"),
        ("[[key]]\nsecret = 'a'\nrequests_per_minute = 0", "at least 1"),
        ("[[key]]\nsecret = 'a'\nmoney_per_day = 'x'", "money_per_day is 'x'"),
        ("[[key]]\nsecret = 'a'\nrate = 1", "unknown field `rate`"),
        ("[[key]", "is wrong"),
    ],
)
def test_key_files_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_keys(ServerConfig(api_key_file=str(file)))


def test_hosts() -> None:
    hosts = HostList(ServerConfig(host="box.lan", allowed_hosts=("api.example.com",)))
    for name in (
        "box.lan:80",
        "API.example.com",
        "192.168.0.1:1",
        "[fe80::1]:1",
        "localhost",
        None,
    ):
        hosts.check(name)
    for name in ("example.com", "api.example.com.evil", "", "box.lan.evil:80"):
        with pytest.raises(InvalidRequestError):
            hosts.check(name)
    HostList(ServerConfig(allowed_hosts=("*",))).check("anything")
