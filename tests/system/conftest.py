"""What the system tests share: a client over a fake engine process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nonet.engine.client import EngineClient, Supervision
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, StartClient, fake_launch, start_server


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server that all harmless tests share."""
    running = start_server(tmp_path_factory.mktemp("server"), FakeConfig(step_s=0.001))
    yield running
    assert running.stop() == 0


@pytest.fixture
def start_one(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """`start_one(FakeConfig(...), host=..., ...)`: a server of the test's own."""
    started: list[RunningServer] = []

    def start(fake: FakeConfig | None = None, **options: object) -> RunningServer:
        started.append(start_server(tmp_path, fake, **options))
        return started[-1]

    yield start
    for running in started:
        running.close()
