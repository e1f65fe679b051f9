"""Admin routes: on their own socket only, closed to others, and what they do to the running server."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, start_server, wait_until
from tests.system.test_gateway_ledger import ledger_options

CHAT = "/v1/chat/completions"
ADMIN_PATHS = ("/keys", "/usage", "/cache", "/cache/purge", "/adapters", "/adapters/a", "/drain")


def body(text: str = "x", **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}], "max_tokens": 3, "temperature": 0, **fields,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("admin")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    options = ledger_options(folder, "exact_cache", "limits")
    running = start_server(
        folder,
        FakeConfig(step_s=0.001),
        gateway={**options, "admin": f"unix:{folder / 'admin.sock'}"},
        api_keys=("first",),
    )
    yield running
    assert running.stop() == 0


@pytest.fixture
def admin(server: RunningServer, folder: Path) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(folder / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        yield client


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_socket_is_its_owners(server: RunningServer, folder: Path) -> None:
    assert stat.S_IMODE((folder / "admin.sock").stat().st_mode) == 0o600
    listening = [
        one.laddr
        for one in psutil.Process(server.process.pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    ]
    assert [(one.ip, one.port) for one in listening] == [("127.0.0.1", server.port)]


@pytest.mark.parametrize("path", ADMIN_PATHS)
def test_the_public_port_has_none_of_it(server: RunningServer, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert httpx.request(method, server.url + path).status_code == 401
        answer = httpx.request(method, server.url + path, headers=auth("first"))
        assert answer.status_code == 404


def test_keys_are_made_used_and_revoked(server: RunningServer, admin: httpx.Client) -> None:
    made = admin.post("/keys", json={"name": "ci", "tenant": "team", "requests_per_minute": 2})
    assert made.status_code == 201
    key = made.json()
    secret = key.pop("secret")
    assert secret.startswith("sk-nonet-")
    shown = {one["id"]: one for one in admin.get("/keys").json()["data"]}
    assert shown[key["id"]] == key
    assert secret not in admin.get("/keys").text
    statuses = [server.post(CHAT, body(), **auth(secret)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert admin.delete(f"/keys/{key['id']}").json() == {"id": key["id"], "revoked": True}
    assert server.post(CHAT, body(), **auth(secret)).status_code == 401
    assert admin.delete(f"/keys/{key['id']}").status_code == 404
    assert secret not in server.log.read_text()


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        ({"requests_per_minute": 0}, "at least 1"),
        ({"money_per_day": "much"}, "give an amount"),
        ({"expires": "soon"}, "2027-01-01"),
        ({"tenant": " "}, "tenant is empty"),
        ({"rate": 3}, "unknown field"),
        ([], "Expected"),
    ],
)
def test_keys_that_are_wrong(admin: httpx.Client, given: Any, fragment: str) -> None:
    answer = admin.post("/keys", json=given)
    assert answer.status_code == 400
    assert fragment in answer.text


def test_usage_of_all_tenants(server: RunningServer, admin: httpx.Client) -> None:
    server.post(CHAT, body("usage"), **auth("first"))
    everybody = admin.get("/usage", params={"by": "tenant"}).json()["data"]
    assert len(everybody) >= 1
    (one,) = admin.get("/usage", params={"tenant": everybody[0]["tenant"]}).json()["data"]
    assert one["requests"] == everybody[0]["requests"]


def test_the_cache_is_purged(server: RunningServer, admin: httpx.Client) -> None:
    outcomes = [
        server.post(CHAT, body("purge me"), **auth("first")).headers["x-nonet-cache"] for _ in range(3)
    ]  # fmt: skip
    assert outcomes == ["miss", "exact", "exact"]
    held = admin.get("/cache").json()
    assert held["entries"] >= 1
    assert held["memory_bytes"] > 0
    dry = admin.post("/cache/purge", json={"dry_run": True}).json()
    assert dry == {"entries": held["entries"], "dry_run": True}
    assert admin.post("/cache/purge", json={"tenant": "nobody"}).json()["entries"] == 0
    assert admin.post("/cache/purge", json={}).json()["entries"] == held["entries"]
    assert admin.get("/cache").json()["entries"] == 0
    again = server.post(CHAT, body("purge me"), **auth("first"))
    assert again.headers["x-nonet-cache"] == "miss"  # and the replay by bytes is gone too


def test_foreign_hosts_are_refused(admin: httpx.Client) -> None:
    assert admin.get("/keys", headers={"host": "evil.example"}).status_code == 400


def test_keys_outlive_the_server_and_drain_ends_it(
    start_one: Callable[..., RunningServer], tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    gateway = {"data_dir": str(tmp_path / "data"), "admin": f"unix:{path}"}
    secrets: list[str] = []
    for round_ in range(2):
        server = start_one(gateway=gateway)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            if round_ == 0:
                assert server.get("/v1/models").status_code == 200  # no key yet: open
                secrets = [client.post("/keys", json={}).json()["secret"] for _ in range(2)]
                key_id = client.get("/keys").json()["data"][0]["id"]
                client.delete(f"/keys/{key_id}")
            assert server.get("/v1/models").status_code == 401
            statuses = [server.get("/v1/models", **auth(one)).status_code for one in secrets]
            assert sorted(statuses) == [200, 401]
            assert client.post("/drain").status_code == 202
        wait_until(lambda server=server: server.process.poll() is not None)
        assert server.process.returncode == 0


def test_a_port_needs_a_key(start_one: Callable[..., RunningServer]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for admin, message in (
        (f"127.0.0.1:{port}", "needs an admin_key"),
        (f"0.0.0.0:{port}", "loopback address"),
        ("somewhere", "loopback address"),
        ("unix:/nowhere/admin.sock", "cannot listen"),
    ):
        with pytest.raises(AssertionError, match=message):
            start_one(gateway={"admin": admin})
    server = start_one(gateway={"admin": f"127.0.0.1:{port}", "admin_key": "root"})
    url = f"http://127.0.0.1:{port}"
    for headers in ({}, auth("wrong"), {"authorization": "root"}):
        for path in ADMIN_PATHS:
            assert httpx.get(url + path, headers=headers).status_code == 401
    assert httpx.get(f"{url}/keys", headers=auth("root")).status_code == 200
    assert httpx.get(f"{url}/cache", headers=auth("root")).status_code == 404
    assert httpx.post(f"{url}/keys", json={}, headers=auth("root")).status_code == 400
    assert "root" not in server.log.read_text()
