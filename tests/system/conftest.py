"""What the system tests share: a client over a fake engine process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fake_engine import FakeConfig
from harness import StartClient, fake_launch

from nonet.engine.client import EngineClient, Supervision


@pytest.fixture
async def start_client() -> AsyncIterator[StartClient]:
    """`await start_client(FakeConfig(...), Supervision(...))`; closed at the end."""
    clients: list[EngineClient] = []

    async def start(
        config: FakeConfig | None = None, supervision: Supervision | None = None
    ) -> EngineClient:
        client = EngineClient(fake_launch(config or FakeConfig()), supervision)
        clients.append(client)
        await client.start()
        return client

    yield start
    for client in clients:
        await client.close()
