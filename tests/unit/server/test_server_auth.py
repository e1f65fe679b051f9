"""Keys, loopback and Host headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonet.config.schema import ServerConfig
from nonet.core.errors import AuthenticationError, ConfigError, InvalidRequestError
from nonet.server.auth import HostList, KeyRing, is_loopback, read_keys, refuse_open_bind


def test_keys_are_kept_hashed() -> None:
    ring = KeyRing(["hunter2"])
    assert "hunter2" not in repr(vars(ring))
    assert ring.tenant_of("bearer hunter2") == ring.tenant_of("Bearer  hunter2 ")
    for given in (None, "", "Bearer", "Bearer hunter", "hunter2", "Token hunter2"):
        with pytest.raises(AuthenticationError):
            ring.tenant_of(given)


def test_a_key_may_come_in_the_other_header() -> None:
    ring = KeyRing(["a", "b"])
    assert (
        ring.tenant_of(None, "a") == ring.tenant_of("Bearer a") == ring.tenant_of("Bearer a", "b")
    )
    for given in ((None, ""), (None, "c"), ("Bearer c", "a"), ("", "a")):
        with pytest.raises(AuthenticationError):
            ring.tenant_of(*given)


def test_tenants_differ_by_key() -> None:
    ring = KeyRing(["a", "b"])
    assert ring.tenant_of("Bearer a") != ring.tenant_of("Bearer b")
    assert KeyRing([]).tenant_of(None) == ""


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
    refuse_open_bind(ServerConfig(host="127.0.0.1"), [])
    refuse_open_bind(ServerConfig(host="0.0.0.0"), ["key"])
    with pytest.raises(ConfigError, match="without an API key"):
        refuse_open_bind(ServerConfig(host="0.0.0.0"), [])


def test_key_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(" one \n\ntwo\n")
    assert read_keys(ServerConfig(api_keys=("zero",), api_key_file=str(file))) == [
        "zero",
        "one",
        "two",
    ]
    file.write_text("\n")
    for config in (
        ServerConfig(api_key_file=str(file)),
        ServerConfig(api_key_file=str(tmp_path / "missing")),
        ServerConfig(api_keys=(" ",)),
    ):
        with pytest.raises(ConfigError):
            read_keys(config)


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
