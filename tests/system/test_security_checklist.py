"""Items of the security list that have no test of their own elsewhere; docs/security.md lists all of them."""

from __future__ import annotations

import re
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nonet.server.app import ROUTES
from tests.system.fake_engine import FakeConfig
from tests.system.harness import PATIENCE_S, RunningServer, start_server, wait_until

ALICE, BOB = "sk-alice-7f3a91", "sk-bob-55c2e0"
POSTS = sorted(path for method, path, _ in ROUTES if method == "POST" and "{" not in path)
NAMED = sorted({(method, path) for method, path, _ in ROUTES if "{" in path})
ODD_NAMES = (
    "..", "../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd", "%2fetc%2fpasswd", "a%00b", "..%5c..",
    "resp_%EF%BC%8E%EF%BC%8E", "%EF%BC%8Fetc", "x" * 3000, "%", "%ff%fe", "resp_1'%20OR%20'1'='1", "~root",
)  # fmt: skip
LEAKS = re.compile(r"Traceback|File \"|0x[0-9a-f]{6,}|site-packages|/nonet/|\.py\b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checklist")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    gateway = {"gateway": ["exact_cache", "ledger"], "data_dir": str(folder / "data")}
    running = start_server(folder, FakeConfig(step_s=0.001), gateway=gateway, api_keys=[ALICE, BOB])
    running.headers = {"authorization": f"Bearer {ALICE}"}
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def chat(text: str, **fields: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": text}]
    return {"model": "fake", "messages": said, "max_tokens": 4, "temperature": 0, **fields}


@pytest.mark.parametrize("path", POSTS)
def test_s5_bodies_that_are_no_json(server: RunningServer, path: str) -> None:
    """Invalid UTF-8, numbers that JSON has not, nesting without end, and no body at all."""
    deep = b'{"model":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    for body in (
        b"\xff\xfe", b'{"model": "\xc3\x28"}', b'{"temperature": NaN}', b'{"temperature": 1e400}', b'{"n": Infinity}',
        deep, b"", b"null", b"[]", b'{"model": "a"', b'{"a": 1}{"b": 2}',
    ):  # fmt: skip
        answer = httpx.post(server.url + path, content=body, headers=server.headers)
        assert 400 <= answer.status_code < 500, (path, body[:40], answer.text)
        assert not LEAKS.search(answer.text)


def test_s5_half_closed_and_truncated(server: RunningServer) -> None:
    """A client that will send no more gets its answer, or nothing; the server goes on either way."""
    head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ALICE}\r\n"
    for sent in (
        head + 'Content-Length: 15\r\n\r\n{"prompt": "a"}',
        head + "Content-Length: 500\r\n\r\n{",
        head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        head,
        "",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
            connection.sendall(sent.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), answer[:100]
    wait_until(server.is_empty)


def auc(hits: list[float], misses: list[float]) -> float:
    """How well the two can be told apart: the share of pairs in which the first is the faster one."""
    pairs = [(one < other) + (one == other) / 2 for one in hits for other in misses]
    return sum(pairs) / len(pairs)


def test_s9_another_tenants_cache_cannot_be_seen_in_the_time(server: RunningServer) -> None:
    """Bob probes what Alice has had answered and what nobody has; Alice's own probes show that he could have told."""
    seconds: dict[str, list[float]] = {"bob, asked": [], "bob, new": [], "alice, asked": []}
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:

        def probe(kind: str, key: str, text: str) -> str:
            began = time.perf_counter()
            answer = client.post(
                "/v1/chat/completions",
                json=chat(text, max_tokens=8),
                headers={"authorization": f"Bearer {key}"},
            )
            seconds[kind].append(time.perf_counter() - began)
            return answer.headers["x-nonet-cache"]

        for number in range(250):
            known, new = f"known {number:04}", f"novel {number:04}"
            asked = server.headers
            assert client.post(
                "/v1/chat/completions", json=chat(known, max_tokens=8), headers=asked
            ).is_success
            probes = [("bob, asked", known), ("bob, new", new)]
            for kind, text in probes[:: 1 if number % 2 else -1]:
                assert probe(kind, BOB, text) == "miss"
            assert probe("alice, asked", ALICE, known) == "exact"
    blind = auc(seconds["bob, asked"], seconds["bob, new"])
    seeing = auc(seconds["alice, asked"], seconds["bob, new"])
    assert 0.4 < blind < 0.6, blind  # 3.9 standard errors
    assert seeing > 0.75, seeing


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_s10_odd_names_are_not_found(server: RunningServer, method: str, path: str) -> None:
    for name in ODD_NAMES:
        url = server.url + re.sub(r"\{[^}]*\}", lambda _, name=name: name, path)
        answer = httpx.request(method, url, headers=server.headers)
        # A name that leads to another path, as dots do in a client, may meet a route without this method.
        assert answer.status_code in (400, 404, 405, 431), (method, url[:200], answer.text[:200])
        assert not LEAKS.search(answer.text)


def test_s10_files_are_the_owners_and_ids_cannot_be_guessed(
    server: RunningServer, folder: Path
) -> None:
    body = {"model": "fake", "input": "hi", "max_output_tokens": 2}
    ids = [server.post("/v1/responses", body).json()["id"] for _ in range(3)]
    for one in ids:
        assert len(re.sub(r"^[a-z]+_", "", one)) >= 32, "hexadecimal digits of 128 bits"
    assert len(set(ids)) == 3
    for path in [folder / "data", *(folder / "data").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, (path, oct(mode))
    foreign = httpx.get(
        f"{server.url}/v1/responses/{ids[0]}", headers={"authorization": f"Bearer {BOB}"}
    )
    assert foreign.status_code == 404


def test_s12_secrets_are_in_no_log_error_metric_or_file(
    server: RunningServer, folder: Path
) -> None:
    shown = [
        server.get(path).text
        for path in ("/metrics", "/version", "/v1/usage", "/v1/models", "/readyz", "/")
    ]
    for key in (ALICE, f"{ALICE}x", "é" + BOB):
        headers = {"authorization": f"Bearer {key}".encode(), "x-request-id": "r1"}
        for body in (chat("hi"), {"model": "none"}, chat("hi", max_tokens=10**9), {"tools": key}):
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
            shown += [
                str(answer.headers),
                answer.text.replace(key, "") if "tools" in body else answer.text,
            ]
    wait_until(server.is_empty)
    shown += [server.table, server.log.read_text()]
    for text in shown:
        assert ALICE not in text
        assert BOB not in text
    for path in (folder / "data").rglob("*"):
        if path.is_file():
            assert ALICE.encode() not in path.read_bytes(), path


def test_s12_an_error_of_ours_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    """The engine dies under a request, and the answer says so without where or why."""
    server = start_server(tmp_path, FakeConfig())
    try:
        for word in ("RAISE-NOW", "DIE-NOW"):
            wait_until(server.is_ready)
            answer = server.post("/v1/chat/completions", chat(word))
            assert answer.status_code >= 500
            assert answer.json()["error"]["message"]
            assert not LEAKS.search(answer.text), answer.text
    finally:
        server.close()


def test_s12_keys_made_while_serving_are_stored_hashed(folder: Path, tmp_path: Path) -> None:
    socket_path = tmp_path / "admin"
    gateway = {"admin": f"unix:{socket_path}", "data_dir": str(tmp_path / "data")}
    running = start_server(tmp_path, gateway=gateway, api_keys=[ALICE])
    try:
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://localhost") as admin:
            made = admin.post("/keys", json={"name": "n"}).json()
            secret = next(value for value in made.values() if str(value).startswith("sk-"))
            assert secret not in admin.get("/keys").text
        assert httpx.get(running.url + "/v1/models", headers={"x-api-key": secret}).is_success
        with sqlite3.connect(tmp_path / "data" / "nonet.db") as database:
            dump = "\n".join(database.iterdump())
        assert secret not in dump
        assert "api_key" in dump
        assert secret not in running.log.read_text()
    finally:
        running.close()
