"""The routes of a server that a batch needs: a file up, the batch itself, its files down."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from nonet.bench.http import error_text
from nonet.cli.terminal import Progress
from nonet.core.errors import ConfigError, InvalidRequestError, UnavailableError

__all__ = ["BatchServer"]

CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 60.0
PAGE = 100  # batches


class BatchServer:
    """A server with OpenAI's batch routes, ours or another.

    InvalidRequestError for what it refuses, UnavailableError when it does not answer or not as it should. Each call has
    a connection of its own.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._parts = urlsplit(url)
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname:
            raise ConfigError(f"the server's address is {url!r}; give http://host:port")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def upload(self, path: Path, show: Progress) -> str:
        """Send a file of requests, piece by piece; its id."""
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quote(path.name)}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        size = path.stat().st_size
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        made = self._json("POST", "/v1/files", _upload(path, head, tail, size, show), headers)
        return str(made["id"])

    def create(self, file_id: str, endpoint: str) -> dict[str, Any]:
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        sent = json.dumps(body).encode()
        return self._json("POST", "/v1/batches", sent, {"Content-Type": "application/json"})

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/batches/{quote(batch_id, safe='')}")

    def cancel(self, batch_id: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel")

    def batches(self, limit: int) -> list[dict[str, Any]]:
        """The newest `limit`, the newest first."""
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            query = {"limit": str(min(PAGE, limit - len(found)))}
            if found:
                query["after"] = found[-1]["id"]
            page = self._json("GET", f"/v1/batches?{urlencode(query)}")
            found += page["data"]
            if not page["has_more"]:
                break
        return found

    def download(self, file_id: str, path: Path) -> None:
        """The file's bytes, under `path` once all have come."""
        part = path.with_name(path.name + ".part")
        try:
            with (
                self._answer("GET", f"/v1/files/{quote(file_id, safe='')}/content") as answer,
                part.open("wb") as file,
            ):
                while piece := answer.read(CHUNK_BYTES):
                    file.write(piece)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _json(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        with self._answer(method, path, body, headers) as answer:
            text = answer.read()
        return _document(text, f"{self._url}{path}")

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connected()
        try:
            target = self._parts.path.rstrip("/") + path
            with suppress(
                BrokenPipeError, ConnectionResetError
            ):  # it has its answer before the body's end
                connection.request(method, target, body, {**self._headers, **(headers or {})})
            answer = connection.getresponse()
            if answer.status != 200:
                _refuse(answer, f"{self._url}{path}")
            yield answer
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise UnavailableError(f"the answer of {self._url} breaks off: {error!r}") from None
        finally:
            connection.close()

    def _connected(self) -> http.client.HTTPConnection:
        is_secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=TIMEOUT_S)
        try:
            connection.connect()
        except OSError as error:
            raise UnavailableError(
                f"no server answers at {self._url}: {error.strerror or error}"
            ) from None
        return connection


def _upload(path: Path, head: bytes, tail: bytes, size: int, show: Progress) -> Iterator[bytes]:
    yield head
    done = 0
    with path.open("rb") as file:
        while done < size and (piece := file.read(min(CHUNK_BYTES, size - done))):
            yield piece
            done += len(piece)
            show(done, size)
    yield tail


def _refuse(answer: http.client.HTTPResponse, where: str) -> None:
    text = error_text(_document(answer.read(), where))
    if answer.status < 500 and answer.status != 429:
        raise InvalidRequestError(f"{where} answered {answer.status}: {text}")
    raise UnavailableError(f"{where} answered {answer.status}: {text}")


def _document(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnavailableError(f"{where} answered with {text[:200]!r}, which is no JSON object")
    return found
