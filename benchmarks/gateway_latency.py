"""What layers add to the latency of a request: servers that differ in their layers are asked in turn, request by
request and in a random order, so that whatever else the machine does meets all alike; and the disk's own share.

Each turn also writes two pages over in a file that is there already and waits for the disk, as a commit must. Nothing
that is durable before its last byte can be faster than that.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

PAGE_BYTES = 4096
PAGES = 4096
SEED = 100_000_000
PAUSE_S = 0.002  # what a server does after its answer must not meet the next one's request
SETTLING = 100  # turns before anything counts


@dataclass(frozen=True, slots=True)
class Added:
    """Latency over all turns; `added` is the same quantile's difference to the first server."""

    name: str
    requests: int
    p50_ms: float
    p99_ms: float
    added_p50_ms: float | None
    added_p99_ms: float | None


def measure_added(
    urls: Sequence[tuple[str, str]],
    body: dict[str, Any],
    headers: dict[str, str],
    *,
    turns: int,
    disk: Path,
) -> list[Added]:
    """One row per server, then the disk's. Every request differs in its seed, so no cache answers."""
    asked = orjson.dumps({**body, "max_tokens": 1, "seed": SEED})
    clients = [_Client(url, headers, asked) for _, url in urls]
    first = random.randrange(SEED // 2)  # what an earlier run asked is in the cache
    probe = _Disk(disk)
    actors: list[Callable[[int], None]] = [*(client.ask for client in clients), probe.sync]
    took_s: list[list[float]] = [[] for _ in actors]
    for turn in range(SETTLING + turns):
        for actor, seconds in random.sample(list(zip(actors, took_s, strict=True)), len(actors)):
            time.sleep(PAUSE_S)
            began_s = time.perf_counter()
            actor(first + turn)
            seconds.append(time.perf_counter() - began_s)
    for one in (*clients, probe):
        one.close()
    quantiles = [_quantiles(seconds[SETTLING:]) for seconds in took_s]
    rows = []
    for name, (p50, p99) in zip((name for name, _ in urls), quantiles, strict=False):
        base50, base99 = quantiles[0]
        rows.append(Added(name, turns, p50, p99, round(p50 - base50, 3), round(p99 - base99, 3)))
    return [*rows, Added("the disk: two pages, fdatasync", turns, *quantiles[-1], None, None)]


class _Client:
    """One connection that is kept open, without a thread or an event loop of its own."""

    def __init__(self, url: str, headers: dict[str, str], asked: bytes) -> None:
        at = urlsplit(url)
        assert at.hostname is not None
        assert at.port is not None
        self._asked = asked
        lines = [f"POST {at.path} HTTP/1.1", f"host: {at.netloc}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join([*lines, f"content-length: {len(asked)}", "", ""]).encode()
        self._socket = socket.create_connection((at.hostname, at.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, number: int) -> None:
        self._socket.sendall(
            self._head + self._asked.replace(b"%d" % SEED, b"%d" % (SEED + 1 + number))
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._received()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        size = int(sizes[0].partition(b":")[2])
        while len(body) < size:
            body += self._received()

    def close(self) -> None:
        self._socket.close()

    def _received(self) -> bytes:
        some = self._socket.recv(65_536)
        if not some:
            raise RuntimeError("the server closed the connection")
        return some


class _Disk:
    """Writes over a file of the databases' folder, so that no new blocks are asked for."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "probe", os.O_CREAT | os.O_RDWR)
        os.pwrite(self._file, bytes(PAGES * PAGE_BYTES), 0)
        os.fsync(self._file)

    def sync(self, number: int) -> None:
        os.pwrite(self._file, b"x" * 2 * PAGE_BYTES, 2 * number % PAGES * PAGE_BYTES)
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return tuple(round(1e3 * ordered[int(share * (len(ordered) - 1))], 3) for share in (0.5, 0.99))  # type: ignore[return-value]
