"""An open-loop client for /v1/completions: every request leaves at its own time, however slow the answers are.

Plain asyncio and HTTP/1.1, one connection a request, so that the client adds little of its own to the times it takes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nonet.bench.metrics import RequestTimes
from nonet.bench.workload import WorkItem
from nonet.core.errors import ConfigError

__all__ = ["Target", "fetch_json", "send_all"]

# Longest line of a response; prompts of any length travel in the request only.
MAX_LINE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how it is asked."""

    url: str  # "http://127.0.0.1:8000"
    model: str
    api_key: str | None = field(default=None, repr=False)
    ignore_eos: bool = (
        True  # generate exactly what the workload asks; needs a server that knows the field
    )
    timeout_s: float = 600.0


async def send_all(
    target: Target, items: Sequence[WorkItem], due_s: Sequence[float]
) -> list[RequestTimes]:
    """Send each item at its time and wait for all; a failure is recorded, never raised."""
    start = time.monotonic()
    tasks = [
        asyncio.create_task(_send_at(target, index, item, due, start))
        for index, (item, due) in enumerate(zip(items, due_s, strict=True))
    ]
    return list(await asyncio.gather(*tasks))


async def fetch_json(url: str, path: str, api_key: str | None = None) -> Any:
    """GET one JSON document; OSError when nobody answers, ConfigError when the answer is not JSON."""
    head = _head("GET", url, path, api_key, 0)
    reader, writer = await _connect(url)
    try:
        writer.write(head)
        status, lines = await _response(reader)
        body = "\n".join([line async for line in lines])
    finally:
        writer.close()
    try:
        document = json.loads(body)
    except ValueError:
        raise ConfigError(
            f"{url}{path} answered {status} with something that is not JSON"
        ) from None
    if status != 200:
        raise ConfigError(f"{url}{path} answered {status}: {_message(document)}")
    return document


async def _send_at(
    target: Target, index: int, item: WorkItem, due_s: float, start: float
) -> RequestTimes:
    await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
    seen = _Seen(index, due_s, time.monotonic() - start, len(item.prompt_ids))
    try:
        async with asyncio.timeout(target.timeout_s):
            await _stream(target, item, seen, start)
    except TimeoutError:
        seen.error = f"no end within {target.timeout_s:g} s"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    return seen.times()


@dataclass(slots=True)
class _Seen:
    """What has been seen of one request so far."""

    index: int
    due_s: float
    sent_s: float
    prompt_tokens: int
    delivery_s: list[float] = field(default_factory=list)
    output_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None

    def times(self) -> RequestTimes:
        if self.error is None and not self.delivery_s:
            self.error = "the stream ended without output"
        return RequestTimes(
            index=self.index,
            due_s=self.due_s,
            sent_s=self.sent_s,
            delivery_s=self.delivery_s,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens or len(self.delivery_s),
            cached_tokens=self.cached_tokens,
            finish_reason=self.finish_reason,
            error=self.error,
        )

    def take(self, event: dict[str, Any], now_s: float) -> None:
        if event.get("error"):
            self.error = _message(event)
        for choice in event.get("choices") or ():
            if choice.get("text") or choice.get("token_ids"):
                self.delivery_s.append(now_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        usage = event.get("usage")
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
            self.output_tokens = usage.get("completion_tokens", self.output_tokens)
            details = usage.get("prompt_tokens_details") or {}
            self.cached_tokens = details.get("cached_tokens") or 0


async def _stream(target: Target, item: WorkItem, seen: _Seen, start: float) -> None:
    body = json.dumps(
        {
            "model": target.model,
            "prompt": list(item.prompt_ids),
            "max_tokens": item.output_len,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if target.ignore_eos else {}),
        }
    ).encode()
    reader, writer = await _connect(target.url)
    try:
        writer.write(_head("POST", target.url, "/v1/completions", target.api_key, len(body)) + body)
        await writer.drain()
        status, lines = await _response(reader)
        if status != 200:
            text = "\n".join([line async for line in lines])
            seen.error = f"HTTP {status}: {text[:300]}"
            return
        async for line in lines:
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            seen.take(json.loads(data), time.monotonic() - start)
        seen.error = seen.error or "the stream ended before [DONE]"
    finally:
        writer.close()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the server's address is {url!r}; give http://host:port")
    secure = parts.scheme == "https"
    return await asyncio.open_connection(
        parts.hostname,
        parts.port or (443 if secure else 80),
        ssl=ssl.create_default_context() if secure else None,
        limit=MAX_LINE_BYTES,
    )


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


async def _response(reader: asyncio.StreamReader) -> tuple[int, AsyncIterator[str]]:
    """Status, and the lines of the body."""
    status_line = (await reader.readline()).decode("latin-1").split(maxsplit=2)
    if len(status_line) < 2 or not status_line[1].isdigit():
        raise OSError("the server closed the connection without an HTTP answer")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    pieces = _chunks(reader) if chunked else _plain(reader, headers.get("content-length"))
    return int(status_line[1]), _lines(pieces)


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


def _message(document: dict[str, Any]) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error or document)
