"""Launching engine processes and waiting, for the system tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import psutil

from nonet.engine.client import EngineClient, EngineLaunch
from tests.real_models import real_model
from tests.system.fake_engine import FakeConfig

ROOT = str(Path(__file__).parents[2])

PATIENCE_S = 60.0  # for what must happen, however busy the machine
POLL_S = 0.01

StartClient = Callable[..., Awaitable[EngineClient]]


def fake_launch(config: FakeConfig) -> EngineLaunch:
    return EngineLaunch(
        config=msgspec.json.encode(config),
        factory="tests.system.fake_engine:build",
        env={"PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])},
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. What polling itself takes is not counted: a machine that is busy with other work makes
    polls slow, not many. How long it took is for no test to judge."""
    slept_s = 0.0
    while not condition():
        assert slept_s < PATIENCE_S, "condition not met in time"
        await asyncio.sleep(POLL_S)
        slept_s += POLL_S


@dataclass
class RunningServer:
    """A server process; `url` is where it listens."""

    process: subprocess.Popen[str]
    url: str
    table: str
    log: Path
    headers: dict[str, str] = field(default_factory=dict)  # of all requests

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={**self.headers, **headers}, timeout=PATIENCE_S)

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return httpx.post(
            self.url + path, json=body, headers={**self.headers, **headers}, timeout=PATIENCE_S
        )

    def metric(self, name: str) -> float:
        """The sum of a metric's samples, whatever their labels."""
        return self.metrics(name)[0]

    def metrics(self, *names: str) -> list[float]:
        """Several at one moment."""
        sums: dict[str, float] = {}
        for line in self.get("/metrics").text.splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in names:
                sums[name] = sums.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        assert len(sums) == len(names), f"only {sorted(sums)} of {names}"
        return [sums[name] for name in names]

    @property
    def tokens_made(self) -> float:
        """Up to the engine's last report, which comes at the latest when it has nothing left to do."""
        return self.metric("nonet_generation_tokens_total")

    def is_ready(self) -> bool:
        return self.get("/readyz").status_code == 200

    def is_empty(self) -> bool:
        """No sequence lives in the engine and every block is free."""
        running, waiting, free, blocks = self.metrics(
            "nonet_running_sequences",
            "nonet_waiting_requests",
            "nonet_kv_blocks_free",
            "nonet_kv_blocks",
        )
        return running == waiting == 0 and free == blocks

    def engine_pid(self) -> int:
        children = psutil.Process(self.process.pid).children()
        return next(child.pid for child in children if "nonet.engine.process" in child.cmdline())

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self.close()
        return code

    def close(self) -> None:
        """End it the hard way, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


def start_server(
    folder: Path,
    fake: FakeConfig | None = None,
    options: dict[str, object] | None = None,
    gateway: dict[str, object] | None = None,
    max_header_s: float | None = None,
    **server: object,
) -> RunningServer:
    """Start a server on a free port and wait for its start-up table. With `options`, of a real model."""
    job = {
        "fake": msgspec.to_builtins(fake or FakeConfig()),
        "options": options or {},
        "gateway": gateway or {},
        "max_header_s": max_header_s,
        "server": {"port": 0, "drain_s": 5.0, **server},
    }
    log = folder / f"server-{time.monotonic_ns()}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.server_main", json.dumps(job)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    table: list[str] = []
    for line in process.stdout:
        table.append(line)
        if line.strip().startswith("curl "):
            break
    text = "".join(table)
    if "listening on" not in text:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()
        raise AssertionError(log.read_text())
    url = next(line.split()[2] for line in table if "listening on" in line)
    return RunningServer(process, url, text, log)


def real_options(name: str, **more: object) -> dict[str, object]:
    """Options to serve a packaged model in little memory; skips when it is not in the cache."""
    return {"model": str(real_model(name)), "served_name": name, "memory_gib": 0.5, **more}


def wait_until(condition: Callable[[], bool]) -> None:
    """`until` for tests that are not async."""
    slept_s = 0.0
    while not condition():
        assert slept_s < PATIENCE_S, "condition not met in time"
        time.sleep(2 * POLL_S)
        slept_s += 2 * POLL_S
