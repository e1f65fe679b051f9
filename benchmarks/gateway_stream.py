"""Events of streams per second that one server on one core sends; the reader counts them and does nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil

EVENT = b"data: {"  # the mark of the end is none

__all__ = ["Streams", "measure_streams"]


@dataclass(frozen=True, slots=True)
class Streams:
    """Many streams at once, all read to their end."""

    server: str
    streams: int
    events: int
    tokens: int  # asked for: a stream that is behind sends several in one event
    tokens_per_s: float
    events_per_s: float
    cpu_us_per_event: float  # of the server's process alone
    events_per_cpu_s: float


async def measure_streams(
    name: str, url: str, pid: int, body: dict[str, Any], headers: dict[str, str], streams: int
) -> Streams:
    """`streams` connections ask for `body` at once. RuntimeError for an answer that is no stream to its end."""
    await asyncio.gather(*[_read(url, body, headers, number) for number in range(8)])  # warm
    server = psutil.Process(pid)
    before, began = server.cpu_times(), time.perf_counter()
    counts = await asyncio.gather(
        *[_read(url, body, headers, 1000 + number) for number in range(streams)]
    )
    wall_s, after = time.perf_counter() - began, server.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    events = sum(counts)
    return Streams(
        server=name,
        streams=streams,
        events=events,
        tokens=streams * int(body["max_tokens"]),
        tokens_per_s=round(streams * int(body["max_tokens"]) / wall_s),
        events_per_s=round(events / wall_s),
        cpu_us_per_event=round(1e6 * cpu_s / events, 1),
        events_per_cpu_s=round(events / cpu_s),
    )


async def _read(url: str, body: dict[str, Any], headers: dict[str, str], seed: int) -> int:
    """How many events one stream has."""
    place = urlsplit(url)
    sent = json.dumps({**body, "stream": True, "seed": seed}).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    lines = [
        f"POST {place.path} HTTP/1.1",
        f"host: {place.netloc}",
        f"content-length: {len(sent)}",
        "content-type: application/json",
        "connection: close",
        *[f"{key}: {value}" for key, value in headers.items()],
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + sent)
    events, tail, head = 0, b"", b""
    while part := await reader.read(1 << 18):
        head = head or part[:32]
        events += (tail + part).count(EVENT)
        tail = (tail + part)[1 - len(EVENT) :]  # of an event that two reads share
    writer.close()
    if not head.startswith(b"HTTP/1.1 200") or events == 0:
        raise RuntimeError(f"no stream from {url}: {head!r}")
    return events
