"""Latency and goodput over HTTP: requests sent at their own times, to a server that runs or to one started here."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from nonet.bench.client import Target, send_all
from nonet.bench.http import get_json
from nonet.bench.metrics import RequestTimes
from nonet.bench.workload import WorkItem, Workload
from nonet.core.errors import ConfigError, UnavailableError

__all__ = ["ServedModel", "ask_model", "measure", "running_server"]

QUIET = ("NONET_SERVER_LOG_LEVEL", "warning")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of the model it serves."""

    name: str
    max_model_len: int | None


def measure(
    target: Target, workload: Workload, due_s: Sequence[float], warm_up: Sequence[WorkItem] = ()
) -> list[RequestTimes]:
    """Send `warm_up` at once and wait, then the workload at its times. UnavailableError when the warm-up fails."""
    return asyncio.run(_measure(target, workload, due_s, warm_up))


async def ask_model(url: str, api_key: str | None = None, model: str | None = None) -> ServedModel:
    """The model called `model`, or the first one, of GET /v1/models."""
    try:
        listing = await get_json(url, "/v1/models", api_key)
    except OSError as error:
        raise UnavailableError(f"no server answers at {url}: {error.strerror or error}") from None
    rows = {row["id"]: row for row in listing.get("data", [])}
    if not rows:
        raise UnavailableError(f"the server at {url} serves no model")
    name = model or next(iter(rows))
    if name not in rows:
        raise ConfigError(f"{url} serves no model {name!r}; it serves {', '.join(rows)}")
    return ServedModel(name, rows[name].get("max_model_len"))


@contextmanager
def running_server(settings: Mapping[str, str], wait_s: float = 300.0) -> Iterator[str]:
    """A server of our own on a free port, configured through `settings` (NONET_ variables); yields its address.

    It does not log each request, unless told to. It ends with this process, also when that is told to terminate.
    """
    port = _free_port()
    environ = {QUIET[0]: QUIET[1], **os.environ, **settings, "NONET_SERVER_PORT": str(port)}
    environ["NONET_SERVER_HOST"] = "127.0.0.1"
    command = [sys.executable, "-m", "nonet.cli.main", "serve"]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        with _terminating_as_exit():
            url = f"http://127.0.0.1:{port}"
            _wait_ready(process, url, wait_s)
            yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _terminating_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does; without that it would leave the server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


async def _measure(
    target: Target, workload: Workload, due_s: Sequence[float], warm_up: Sequence[WorkItem]
) -> list[RequestTimes]:
    if warm_up:
        warmed = await send_all(target, warm_up, [0.0] * len(warm_up))
        failed = [request.error for request in warmed if request.error is not None]
        if failed:
            raise UnavailableError(f"a request to warm up failed: {failed[0]}")
    return await send_all(target, workload.items, due_s)


def _wait_ready(process: subprocess.Popen[bytes], url: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(f"the server ended with exit code {process.returncode}")
        try:
            asyncio.run(get_json(url, "/readyz"))
        except (OSError, UnavailableError):
            time.sleep(0.1)
        else:
            return
    raise UnavailableError(f"the server at {url} was not ready within {wait_s:g} s")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
