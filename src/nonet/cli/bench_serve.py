"""`nonet bench serve`: latency and goodput over HTTP, against a running server or one started for the run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cyclopts import Group, Parameter

from nonet.bench.client import Target
from nonet.bench.metrics import Limits, summarise
from nonet.bench.plan import arrival_times
from nonet.bench.report import make_report
from nonet.bench.workload import mix
from nonet.cli.bench_flags import JsonFile, WorkloadFlags, publish
from nonet.cli.flags import ENGINE, configured
from nonet.config.load import Loaded, as_environment
from nonet.config.machine import Machine
from nonet.core.errors import ConfigError

__all__ = ["command"]

# Where a server does not tell its limits: a context and a vocabulary that nearly every model has.
ASSUMED_CONTEXT, ASSUMED_VOCABULARY = 4096, 32_000

_LIMITS = Group("Limits of goodput", sort_key=60)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFlags:
    """The promise that goodput counts against."""

    max_ttft: Annotated[float | None, Parameter(help="seconds", group=_LIMITS)] = None
    max_tpot: Annotated[float | None, Parameter(help="seconds", group=_LIMITS)] = None
    max_itl: Annotated[
        float | None, Parameter(help="seconds, of a request's longest gap", group=_LIMITS)
    ] = None
    max_e2e: Annotated[float | None, Parameter(help="seconds", group=_LIMITS)] = None

    def limits(self) -> Limits | None:
        """None when nothing was promised."""
        found = Limits(
            ttft_s=self.max_ttft, tpot_s=self.max_tpot, itl_s=self.max_itl, e2e_s=self.max_e2e
        )
        return None if found == Limits() else found


def bench_serve(
    loaded: Loaded,
    *,
    url: Annotated[
        str | None, Parameter(help="a running server; one is started when unset")
    ] = None,
    api_key: Annotated[str | None, Parameter(help="key for the server at --url")] = None,
    rate: Annotated[
        str, Parameter(help="requests per second (Poisson), inf, or trace for recorded times")
    ] = "1",
    arrival_seed: Annotated[int, Parameter(help="seed of the Poisson arrivals")] = 7,
    work: WorkloadFlags | None = None,
    vocab_size: Annotated[
        int, Parameter(help="prompt ids stay below it; for a server at --url")
    ] = ASSUMED_VOCABULARY,
    warm_up: Annotated[int, Parameter(help="requests to send first, unmeasured")] = 4,
    promise: LimitFlags | None = None,
    json: JsonFile = None,
) -> int:
    """Latency and goodput over HTTP, requests at their own times."""
    from nonet.bench.serving import measure

    limits = (promise or LimitFlags()).limits()
    with _server(loaded, url, api_key, vocab_size) as server:
        workload = (work or WorkloadFlags()).make(
            max_model_len=server.context, vocab_size=server.vocab_size
        )
        arrivals, due_s = arrival_times(workload, rate, arrival_seed)
        warm = mix(warm_up, prompt=(16, 16), output=(8, 8), seed=-1, vocab_size=server.vocab_size)
        requests = measure(server.target, workload, due_s, warm.items)
    summary = summarise(requests, limits)
    report = make_report(
        kind="serve",
        command=sys.argv,
        machine=Machine.detect(),
        config=server.config,
        workload=workload,
        arrivals=arrivals,
        limits=limits,
        warm_up_requests=len(warm.items),
        runs=[summary],
        requests=[requests],
        notes=sorted({request.error for request in requests if request.error is not None}),
    )
    publish(report, json)
    return 1 if summary.num_failed else 0


command = configured(bench_serve, *ENGINE, "server", model_first=True)


@dataclass(frozen=True, slots=True)
class _Server:
    """The server that is measured, and what is known of it."""

    target: Target
    context: int
    vocab_size: int
    config: dict[str, object]


@contextlib.contextmanager
def _server(
    loaded: Loaded, url: str | None, api_key: str | None, vocab_size: int
) -> Iterator[_Server]:
    """The server at `url`, or one of our own that ends afterwards."""
    from nonet.bench.serving import ask_model, running_server

    with contextlib.ExitStack() as stack:
        config: dict[str, object] | None = None
        if url is None:
            config, vocab_size = _plan(loaded)
            url = stack.enter_context(running_server(as_environment(loaded.config)))
            api_key = next(iter(loaded.config.server.api_keys), None)
        url = url.rstrip("/")
        served = asyncio.run(ask_model(url, api_key, loaded.config.model.served_name))
        yield _Server(
            target=Target(url, served.name, api_key),
            context=served.max_model_len or ASSUMED_CONTEXT,
            vocab_size=vocab_size,
            config=config or {"url": url, **msgspec.to_builtins(served)},
        )


def _plan(loaded: Loaded) -> tuple[dict[str, object], int]:
    """The resolved configuration of the server to start, and its model's vocabulary."""
    from nonet.engine.prepare import resolve_config

    if loaded.config.server.api_key_file is not None:
        raise ConfigError("a server started for a run takes --api-keys, not api_key_file")
    resolved, spec = resolve_config(loaded.config)
    return msgspec.to_builtins(resolved), spec.vocab_size
