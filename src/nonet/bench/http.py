"""As much HTTP/1.1 as a streaming client needs, on plain asyncio: one connection a request, little time of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from nonet.core.errors import ConfigError, UnavailableError

__all__ = ["error_text", "get_json", "get_text", "stream_events"]

_Answer = tuple[int, dict[str, str], AsyncIterator[str]]

# Longest line of a response; prompts of any length travel in the request only.
MAX_LINE_BYTES = 4 << 20


async def get_json(url: str, path: str, api_key: str | None = None) -> Any:
    """GET one JSON document. OSError when nobody answers, UnavailableError for any answer that is not 200 and JSON."""
    async with _exchange(url, _head("GET", url, path, api_key, 0)) as (status, _, lines):
        return _document(status, "\n".join([line async for line in lines]), url + path)


async def get_text(url: str, path: str, api_key: str | None = None) -> str:
    """GET a text. Raises as `get_json` does."""
    async with _exchange(url, _head("GET", url, path, api_key, 0)) as (status, _, lines):
        text = "\n".join([line async for line in lines])
    if status != 200:
        raise UnavailableError(f"{url}{path} answered {status} with {text[:200]!r}")
    return text


async def stream_events(
    url: str,
    path: str,
    body: Mapping[str, object],
    api_key: str | None = None,
    on_headers: Callable[[Mapping[str, str]], None] | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """POST a body and yield the JSON of each server-sent event until [DONE]; `on_headers` sees the answer's headers.

    OSError when the connection fails, UnavailableError for another status or a stream that breaks off.
    """
    data = json.dumps(body).encode()
    head = _head("POST", url, path, api_key, len(data))
    async with _exchange(url, head + data) as (status, headers, lines):
        if on_headers is not None:
            on_headers(headers)
        if status != 200:
            _document(status, "\n".join([line async for line in lines]), url + path)
        async for line in lines:
            if not line.startswith("data:"):
                continue
            text = line[5:].strip()
            if text == "[DONE]":
                return
            event = json.loads(text)
            if isinstance(event, dict):
                yield event
    raise UnavailableError("the stream ended before [DONE]")


def error_text(document: object) -> str:
    """The message inside an error object, whatever its shape."""
    error = document.get("error", document) if isinstance(document, dict) else document
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


@contextlib.asynccontextmanager
async def _exchange(url: str, request: bytes) -> AsyncIterator[_Answer]:
    """Send a whole request; gives what came back, its lines one by one, and closes the connection afterwards."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the server's address is {url!r}; give http://host:port")
    secure = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname,
        parts.port or (443 if secure else 80),
        ssl=ssl.create_default_context() if secure else None,
        limit=MAX_LINE_BYTES,
    )
    try:
        writer.write(request)
        await writer.drain()
        yield await _response(reader)
    except (asyncio.IncompleteReadError, ValueError) as error:
        raise UnavailableError(f"the server's answer breaks off or is not HTTP: {error}") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # the server may have cut the connection first
            await writer.wait_closed()


def _document(status: int, text: str, where: str) -> Any:
    try:
        document = json.loads(text)
    except ValueError:
        raise UnavailableError(f"{where} answered {status} with {text[:200]!r}") from None
    if status != 200:
        raise UnavailableError(f"{where} answered {status}: {error_text(document)}")
    return document


def _head(method: str, url: str, path: str, api_key: str | None, length: int) -> bytes:
    parts = urlsplit(url)
    lines = [
        f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Connection: close",
        "Accept: text/event-stream, application/json",
    ]
    if length:
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    if api_key:
        lines.append(f"Authorization: Bearer {api_key}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _response(reader: asyncio.StreamReader) -> _Answer:
    """Status, headers by name in small letters, and the lines of the body."""
    status_line = (await reader.readline()).decode("latin-1").split(maxsplit=2)
    if len(status_line) < 2 or not status_line[1].isdigit():
        raise OSError("the server closed the connection without an HTTP answer")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    pieces = _chunks(reader) if chunked else _plain(reader, headers.get("content-length"))
    return int(status_line[1]), headers, _lines(pieces)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readline()


async def _plain(reader: asyncio.StreamReader, length: str | None) -> AsyncIterator[bytes]:
    if length is not None:
        yield await reader.readexactly(int(length))
        return
    while piece := await reader.read(65536):
        yield piece
