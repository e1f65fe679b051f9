"""Launching engine processes and waiting, for the system tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from fake_engine import FakeConfig

from nonet.engine.client import EngineClient, EngineLaunch

HERE = str(Path(__file__).parent)

StartClient = Callable[..., Awaitable[EngineClient]]


def fake_launch(config: FakeConfig) -> EngineLaunch:
    return EngineLaunch(
        config=msgspec.json.encode(config),
        factory="fake_engine:build",
        env={"PYTHONPATH": HERE},
    )


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> float:
    """Wait for a condition; how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, "condition not met in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - start
