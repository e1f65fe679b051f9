"""The server process from start to end: engine and tokenizer load side by side, HTTP listens, signals drain.

First SIGTERM or SIGINT: readiness turns false, new calls get 503, running ones may finish for `drain_s`. The second
ends at once. Running calls that are out of time get an error event before the process leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import uvicorn
import uvloop
from starlette.types import ASGIApp

from nonet.config.resolved import Resolved
from nonet.config.schema import Config, GatewayConfig, ServerConfig
from nonet.core.errors import ConfigError
from nonet.core.model_spec import ModelSpec
from nonet.engine.client import EngineClient, EngineLaunch, Supervision
from nonet.gateway.assemble import build, open_site
from nonet.gateway.encode import beside
from nonet.gateway.generate import EngineAnswers
from nonet.gateway.limits import check_limits
from nonet.gateway.pipeline import Next, Pipeline
from nonet.gateway.site import Site
from nonet.grammar.deferred import default_compiler
from nonet.server.admin import bind_admin, create_admin_app
from nonet.server.app import create_app
from nonet.server.auth import HostList, KeyRing, refuse_open_bind
from nonet.server.batch.job import Place
from nonet.server.batch.runner import BatchRunner
from nonet.server.batch.seats import IdleSeats
from nonet.server.encoder import ServedEncoder, load_encoder
from nonet.server.grammar import GrammarGate
from nonet.server.key_store import stored_keys
from nonet.server.keys import read_keys
from nonet.server.protocol import BoundedProtocol
from nonet.server.sse import StreamGuard
from nonet.server.startup import curl_line, startup_table
from nonet.server.state import ServedModel, ServerState
from nonet.server.thoughts import ThoughtSupport
from nonet.server.tools import ToolSupport
from nonet.store.batches import BatchStore
from nonet.store.completions import CompletionStore
from nonet.store.database import Database
from nonet.store.files import FileStore
from nonet.store.responses import response_store
from nonet.telemetry.metrics import Metrics
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Serving", "serve"]

FILES = "files"  # in the data_dir
SLOW_READER_S = 30.0  # how long one write may wait for a reader
SOCKET_BUFFER_BYTES = 256 * 1024  # what the kernel may hold for a slow reader
DRAIN_POLL_S = 0.05
YOUNG_OBJECTS = 20_000  # between two looks of the garbage collector
SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger("nonet.server")


def serve(
    config: Config,
    resolved: Resolved,
    spec: ModelSpec,
    *,
    launch: EngineLaunch | None = None,
    show: Callable[[str], None] | None = None,
) -> None:
    """Serve until a signal ends it. ConfigError and the like before anything listens; `show` gets the start-up table.

    `launch` replaces the engine process, for tests.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the cores are the engine's
    logging.basicConfig(
        level=config.server.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    launch = launch or EngineLaunch(config=msgspec.json.encode(resolved))
    serving = Serving(config.server, resolved, spec, launch, gateway=config.gateway)
    uvloop.run(serving.run(show or _print))


class Serving:
    """One server run: owns the socket, the engine client, the HTTP server and the text thread."""

    def __init__(
        self,
        config: ServerConfig,
        resolved: Resolved,
        spec: ModelSpec,
        launch: EngineLaunch,
        supervision: Supervision | None = None,
        gateway: GatewayConfig | None = None,
    ) -> None:
        self._config = config
        self._resolved = resolved
        self._spec = spec
        self._gateway = gateway or GatewayConfig()
        self._site = open_site(self._gateway, resolved)
        self._layers = build(self._gateway, self._site)
        self._keys = _keys(config, self._site)
        self._socket = _bind(config)
        self._admin_socket = bind_admin(self._gateway)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._engine = EngineClient(launch, supervision)
        self._stop = asyncio.Event()  # first signal
        self._stop_now = asyncio.Event()  # second signal

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def engine(self) -> EngineClient:
        return self._engine

    async def run(self, show: Callable[[str], None]) -> None:
        """From loading to the end of the last call."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        engine_start = asyncio.create_task(self._engine.start())
        try:
            tokenizer, template = await loop.run_in_executor(
                self._pool, _load_text, self._resolved.model_path
            )
            encoder = await loop.run_in_executor(self._pool, load_encoder, self._config.embedder)
            state = self._state(tokenizer, template, encoder)
            await state.pipeline.start()
            await state.responses.start()
            if state.completions is not None:
                await state.completions.start()
            runner = self._runner(state)
            if runner is not None:
                await runner.start()
            try:
                with self._socket:
                    await self._serve(state, engine_start, show, runner)
            finally:
                if runner is not None:
                    await runner.close()
            await state.pipeline.close()
            if encoder is not None:
                encoder.answers.close()
        finally:
            engine_start.cancel()
            await asyncio.gather(engine_start, return_exceptions=True)
            await self._engine.close()
            if self._site.database is not None:
                await self._site.database.close()
            self._pool.shutdown(wait=False, cancel_futures=True)
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Drain; called a second time, end at once."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _serve(
        self,
        state: ServerState,
        engine_start: asyncio.Task[None],
        show: Callable[[str], None],
        runner: BatchRunner | None,
    ) -> None:
        servers = {self._socket: _HttpServer(_uvicorn_config(create_app(state)))}
        if self._admin_socket is not None:
            admin = create_admin_app(state, self._site, self._gateway.admin_key, self.stop)
            servers[self._admin_socket] = _HttpServer(_uvicorn_config(admin))
        serving = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for listener, server in servers.items()
        ]
        state.guard.start()
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([engine_start, stopping], return_when=asyncio.FIRST_COMPLETED)
            if engine_start.done():
                await engine_start  # raises what went wrong
                _settle_memory()
                show(self._table(state))
                await stopping
            state.is_draining = True
            if runner is not None:
                await runner.close()
            await self._drain(state)
            await self._engine.close(at_once=self._stop_now.is_set())
        finally:
            stopping.cancel()
            state.grammars.close()
            await state.guard.close()
            for server in servers.values():
                server.should_exit = True
            await asyncio.gather(*serving)

    async def _drain(self, state: ServerState) -> None:
        """Wait until nobody is inside, time is up, or the second signal comes."""
        logger.info("event=drain active=%d limit_s=%.1f", len(state.active), self._config.drain_s)
        end_s = time.monotonic() + self._config.drain_s
        while state.active and time.monotonic() < end_s and not self._stop_now.is_set():
            await asyncio.sleep(DRAIN_POLL_S)
        logger.info("event=drained active=%d", len(state.active))

    def _state(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, encoder: ServedEncoder | None
    ) -> ServerState:
        resolved, spec, engine = self._resolved, self._spec, self._engine
        metrics = Metrics(resolved.served_name, lambda: engine.stats, lambda: engine.num_deaths)
        database = self._site.database
        return ServerState(
            config=self._config,
            engine=engine,
            tokenizer=tokenizer,
            template=template,
            tools=ToolSupport(tokenizer, template, self._config.tool_format),
            thoughts=ThoughtSupport(tokenizer, template, self._config.reasoning_parser),
            grammars=self._grammar_gate(tokenizer),
            model=ServedModel(
                name=resolved.served_name,
                created=int(time.time()),
                max_model_len=resolved.max_model_len,
                vocab_size=spec.vocab_size,
                hidden_size=spec.hidden_size,
                eos_ids=spec.eos_ids,
                generation=spec.generation,
            ),
            keys=self._keys,
            hosts=HostList(self._config),
            metrics=metrics,
            pipeline=Pipeline(self._layers, _end_of_pipeline(engine, tokenizer, encoder)),
            database=database,
            files=self._files(database),
            batches=BatchStore(database) if database is not None else None,
            ledger=self._site.ledger if self._site.books else None,
            responses=response_store(database),
            completions=CompletionStore(database) if database is not None else None,
            guard=StreamGuard(self._config.stream_buffer_bytes, SLOW_READER_S, metrics.stream_cut),
            pool=self._pool,
            encoder=encoder,
            adapter_dir=resolved.adapters.directory if resolved.adapters else None,
            has_admin=self._gateway.admin is not None,
        )

    def _files(self, database: Database | None) -> FileStore | None:
        folder = self._gateway.data_dir
        if database is None or folder is None:
            return None
        max_bytes = int(self._gateway.files_gib * 2**30)
        return FileStore(database, Path(folder).expanduser() / FILES, max_bytes=max_bytes)

    def _runner(self, state: ServerState) -> BatchRunner | None:
        """Who runs batches; None on a server that keeps nothing."""
        if state.batches is None or state.files is None:
            return None
        seats = IdleSeats(self._engine, self._resolved.max_num_seqs, self._gateway.batch_lines)
        return BatchRunner(Place(state=state, store=state.batches, files=state.files, seats=seats))

    def _grammar_gate(self, tokenizer: Tokenizer) -> GrammarGate:
        spec = self._spec
        return GrammarGate(default_compiler(lambda: tokenizer, spec.vocab_size, spec.eos_ids))

    def _table(self, state: ServerState) -> str:
        curl = curl_line(
            self.url,
            state.model.name,
            has_chat=state.template is not None,
            has_keys=not state.keys.is_open,
        )
        return startup_table(self._engine.info, self._resolved, self.url, curl)


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: draining is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        backlog=2048,
    )


def _settle_memory() -> None:
    """What loading made lives as long as the process: it is not scanned again. A call's objects go by reference counts,
    so the collector may look seldom; at its default it runs every few calls, over all that are in flight."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def _keys(config: ServerConfig, site: Site) -> KeyRing:
    """The keys of the options and those made while the server ran; ConfigError when there must be one and is none."""
    stored, is_locked = stored_keys(site.database)
    keys = read_keys(config) + stored
    refuse_open_bind(config, has_keys=bool(keys))
    for key in keys:
        if key.limits is not None:
            check_limits(key.limits, site)
    return KeyRing(keys, is_locked=is_locked)


def _bind(config: ServerConfig) -> socket.socket:
    """The listening socket; ConfigError when the address cannot be had."""
    host = config.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    try:
        listener.bind((host, config.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error}; choose another host or port"
        ) from None
    return listener


def _end_of_pipeline(
    engine: EngineClient, tokenizer: Tokenizer, encoder: ServedEncoder | None
) -> Next:
    answers = EngineAnswers(engine, tokenizer)
    return answers if encoder is None else beside(answers, encoder.answers)


def _load_text(model_path: str) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = load_tokenizer(Path(model_path))
    has_template = tokenizer.chat_template is not None
    return tokenizer, ChatTemplate.from_tokenizer(tokenizer) if has_template else None


def _print(text: str) -> None:
    print(text, flush=True)
