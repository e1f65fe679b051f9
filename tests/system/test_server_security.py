"""Doors: every route asks for a key, only our sockets listen, foreign Host headers and malformed HTTP are refused."""

from __future__ import annotations

import contextlib
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from nonet.server.app import ROUTES
from nonet.server.auth import OPEN_PATHS
from nonet.server.playground import PAGE_PATHS
from tests.system.harness import PATIENCE_S, ROOT, RunningServer, start_server, wait_until

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE")
CLOSED_PATHS = tuple(path for _, path, _ in ROUTES if path not in OPEN_PATHS | PAGE_PATHS)
ODD_PATHS = (
    "/nope", "//", "/index.html", "/playground", "/playground.js/", "/playground.js.map",
    "/livez/", "//livez", "/livez/../metrics", "/LIVEZ", "/livez%2f..%2fmetrics",
    "/%6detrics", "/v1/models/", "/metrics/", "/livez;x", "/docs", "/openapi.json", "/admin",
)  # fmt: skip


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("locked")
    key_file = folder / "keys"
    key_file.write_text("from-file\n\n")
    running = start_server(folder, api_keys=("secret-1", "sécret-2"), api_key_file=str(key_file))
    yield running
    running.close()


def test_route_table_is_what_we_think() -> None:
    assert {(method, path) for method, path, _ in ROUTES} == {
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions/{completion_id}"),
        ("POST", "/v1/chat/completions/{completion_id}"),
        ("DELETE", "/v1/chat/completions/{completion_id}"),
        ("GET", "/v1/chat/completions/{completion_id}/messages"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/responses/input_tokens"),
        ("GET", "/v1/responses/{response_id}"),
        ("DELETE", "/v1/responses/{response_id}"),
        ("POST", "/v1/responses/{response_id}/cancel"),
        ("GET", "/v1/responses/{response_id}/input_items"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/messages/batches"),
        ("GET", "/v1/messages/batches"),
        ("GET", "/v1/messages/batches/{batch_id}"),
        ("DELETE", "/v1/messages/batches/{batch_id}"),
        ("POST", "/v1/messages/batches/{batch_id}/cancel"),
        ("GET", "/v1/messages/batches/{batch_id}/results"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/files/{file_id}"),
        ("DELETE", "/v1/files/{file_id}"),
        ("GET", "/v1/files/{file_id}/content"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/batches"),
        ("GET", "/v1/batches/{batch_id}"),
        ("POST", "/v1/batches/{batch_id}/cancel"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{name:path}"),
        ("GET", "/v1/usage"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/health"),
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("GET", "/"),
        ("GET", "/playground.js"),
        ("GET", "/playground.css"),
    }
    assert {"/livez", "/readyz", "/health"} == OPEN_PATHS
    assert {"/", "/playground.js", "/playground.css"} == PAGE_PATHS


@pytest.mark.parametrize("path", [*CLOSED_PATHS, *ODD_PATHS])
def test_every_path_needs_a_key(locked: RunningServer, path: str) -> None:
    url = locked.url + path.replace("{name:path}", "fake")
    for method in METHODS:
        answer = httpx.request(method, url)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "given",
    ["Bearer wrong", "Bearer secret-", "Bearer secret-1x", "Basic secret-1", "secret-1", "Bearer", "", "Bearer \x80"],
)  # fmt: skip
def test_wrong_keys_are_refused(locked: RunningServer, given: str) -> None:
    answer = httpx.get(locked.url + "/metrics", headers={"authorization": given.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "secret" not in answer.text


@pytest.mark.parametrize("key", ["secret-1", "sécret-2", "from-file"])
def test_right_keys_open(locked: RunningServer, key: str) -> None:
    headers = {"authorization": f"Bearer {key}".encode()}
    assert httpx.get(locked.url + "/metrics", headers=headers).status_code == 200
    assert httpx.get(locked.url + "/nope", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/livez/..", "/livez/../metrics", "/./", "/x/../playground.js", "http://localhost/x/.."],
)
def test_dots_in_a_path_open_nothing(locked: RunningServer, path: str) -> None:
    """Sent as they are: clients would resolve them."""
    answer = raw(
        locked, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.split(b" ")[1] == b"401", answer[:200]


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_the_page_is_all_that_opens_without_a_key(locked: RunningServer, path: str) -> None:
    for method in METHODS:
        answer = httpx.request(method, locked.url + path)
        assert answer.status_code == (200 if method in ("GET", "HEAD") else 401), method
    assert "secret" not in locked.get(path).text


def test_probes_are_open(locked: RunningServer) -> None:
    assert [locked.get(path).status_code for path in sorted(OPEN_PATHS)] == [200, 200, 200]


def test_keys_are_in_no_log_and_no_output(locked: RunningServer) -> None:
    assert "secret" not in locked.log.read_text()
    assert "secret" not in locked.table


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200), ("10.1.2.3", 200),
        ("evil.example", 400), ("localhost.evil.example", 400), ("evil.example:8000", 400), ("127.0.0.1.nip.io", 400),
    ],
)  # fmt: skip
def test_foreign_hosts_are_refused(server: RunningServer, host: str, status: int) -> None:
    assert server.get("/version", host=host).status_code == status


def test_no_cors_header_for_a_browser(server: RunningServer) -> None:
    answer = httpx.options(
        f"{server.url}/v1/chat/completions",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_only_the_configured_socket_listens(server: RunningServer) -> None:
    parent = psutil.Process(server.process.pid)
    listening = [
        (one.laddr.ip, one.laddr.port)
        for process in (parent, *parent.children(recursive=True))
        for one in process.net_connections("all")
        if one.status == psutil.CONN_LISTEN and one.family != socket.AF_UNIX
    ]
    assert listening == [("127.0.0.1", server.port)]


def test_engine_socket_is_private(server: RunningServer) -> None:
    argument = psutil.Process(server.engine_pid()).cmdline()[-1]
    folder = Path(argument).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_public_bind_without_a_key_is_refused() -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.system.server_main", '{"server": {"host": "0.0.0.0", "port": 0}}',
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "without an API key" in done.stderr


def raw(server: RunningServer, *parts: bytes, head_only: bool = False) -> bytes:
    """Send bytes; what comes back until the server closes, or until the first answer's head is there."""
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        received = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            while not (head_only and b"\r\n\r\n" in received):
                data = connection.recv(65536)
                if not data:
                    break
                received += data
        return received


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("name", "sent", "status"),
    [
        ("garbage", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], b"400"),
        ("huge header", [HEAD + b"X-A: ", b"a" * 1_000_000, b"\r\n\r\n"], b"431"),
        ("many headers", [HEAD, b"X: y\r\n" * 100_000, b"\r\n"], b"431"),
        ("huge path", [b"GET /" + b"a" * 200_000], b"431"),
        ("two lengths", [HEAD + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}"], b"400"),
        (
            "length and chunked",
            [HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
            b"400",
        ),
        ("negative length", [HEAD + b"Content-Length: -1\r\n\r\n{}"], b"400"),
        ("space before colon", [HEAD + b"Content-Length : 2\r\n\r\n{}"], b"400"),
        ("bad chunk", [HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], b"400"),
        ("declared body too large", [HEAD + b"Content-Length: 99999999999\r\n\r\n"], b"413"),
        ("NUL in path", [b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n"], b"400"),
        ("unknown version", [b"GET / HTTP/9.9\r\n\r\n"], b"400"),
    ],
)
def test_malformed_http_is_refused(
    server: RunningServer, name: str, sent: list[bytes], status: bytes
) -> None:
    answer = raw(server, *sent, head_only=True)
    if answer:  # a connection that is reset while we still send may lose the answer
        assert answer.split(b" ")[1] == status, (name, answer[:200])
    assert server.get("/version").status_code == 200


def test_chunked_body_over_the_limit_is_stopped(server: RunningServer) -> None:
    chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
    answer = raw(
        server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 12, head_only=True
    )
    assert not answer or b" 413 " in answer.split(b"\r\n")[0]
    assert server.get("/version").status_code == 200


def test_slow_head_is_dropped(start_one: Callable[..., RunningServer]) -> None:
    """After less than the ten seconds that it has otherwise; a whole head in that time lets the rest be late."""
    server = start_one(max_header_s=0.3)
    address = ("127.0.0.1", server.port)
    with (
        socket.create_connection(address, timeout=PATIENCE_S) as slow,
        socket.create_connection(address, timeout=PATIENCE_S) as whole,
    ):
        whole.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        slow.sendall(b"GET /version HTTP/1.1\r\n")
        assert b" 408 " in slow.recv(4096).split(b"\r\n")[0] + b" "
        assert slow.recv(4096) == b""
        whole.setblocking(False)
        with pytest.raises(BlockingIOError):
            whole.recv(4096)


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = raw(server, one * 5 + last)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    assert statuses == [b"200"] * 5 + [b"404"]


def test_cut_body_leaves_nothing(start_one: Callable[..., RunningServer]) -> None:
    server = start_one()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    wait_until(server.is_empty)
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
