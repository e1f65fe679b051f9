"""What the system tests share: a client over a fake engine process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nonet.engine.client import EngineClient, Supervision
from tests.browser import browser
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, StartClient, fake_launch, real_options, start_server

__all__ = ["browser"]  # the fixture


@pytest.fixture(scope="package", autouse=True)
def no_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each of httpx's clients, also those within the official ones, would read all certificates there are, which takes
    it longer than most requests here; all go to this machine, without TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


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


ENGINES = ("fake", pytest.param("smollm2", marks=pytest.mark.models))


@pytest.fixture(scope="session", params=ENGINES)
def any_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server over each engine that tests may assume nothing about but the API."""
    folder = tmp_path_factory.mktemp("any")
    if request.param == "fake":
        running = start_server(folder, FakeConfig(step_s=0.001))
    else:
        running = start_server(folder, options=real_options(request.param, max_model_len=4096))
    yield running
    assert running.stop() == 0


@pytest.fixture(params=ENGINES)
def start_any(
    request: pytest.FixtureRequest, start_one: Callable[..., RunningServer]
) -> Callable[..., RunningServer]:
    """As `start_one`, over each engine; a fake configuration is ignored by a real one, but for its context."""

    def start(fake: FakeConfig, **server: object) -> RunningServer:
        if request.param == "fake":
            return start_one(fake, **server)
        options = real_options(request.param, max_model_len=fake.max_model_len)
        return start_one(options=options, **server)

    return start


@pytest.fixture
def start_one(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """`start_one(FakeConfig(...), drain_s=..., ...)`: a server of the test's own."""
    started: list[RunningServer] = []

    def start(
        fake: FakeConfig | None = None,
        options: dict[str, object] | None = None,
        gateway: dict[str, object] | None = None,
        **server: object,
    ) -> RunningServer:
        started.append(start_server(tmp_path, fake, options, gateway, **server))
        return started[-1]

    yield start
    for running in started:
        running.close()
