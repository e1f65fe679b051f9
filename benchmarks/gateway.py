"""What the gateway costs: answers from the exact cache per second on one core, what its layers add to a request, and
events of streams per second.

    python benchmarks/gateway.py --out benchmarks/<date>-<machine>-gateway
    python benchmarks/gateway.py --workdir ~/peers       # LiteLLM's proxy too, in a venv made there

Needs `wrk`, and nonet's own environment; the engine is the scripted one of the tests, as no model is measured. Each
server runs on the first core alone and the load generator on the second, both as only work of a quiet machine. Besides
rates, the CPU time per request is shown, which other work on the machine disturbs less. What layers add to a request
is measured with all servers at hand, asked in turn in a random order, and the disk's own time to be durable beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from gateway_latency import Added, measure_added
from gateway_stream import Streams, measure_streams

ROOT = Path(__file__).parents[1]
CORES = sorted(os.sched_getaffinity(0))[:2]
KEY = "sk-benchmark"
BODY = {
    "model": "fake",
    "messages": [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "word " * 180},
    ],
    "temperature": 0,
    "max_tokens": 64,
}  # about 1 KiB
STREAMED = {"model": "fake", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 256}
STREAMS = (16, 64)
LAYERS = {
    "exact cache": ["exact_cache"],
    "exact cache, ledger": ["exact_cache", "ledger"],
}
STARLETTE = """
import asyncio, json, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
ANSWER = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"' \\
    + b"a" * 64 + b'"},"finish_reason":"length"}],"usage":{"prompt_tokens":1000,"completion_tokens":64}}'
EVENT = b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"fake","choices":[{"index":0,' \
    + b'"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]}\\n\\n'
async def events(count):
    for _ in range(count):
        yield EVENT
        await asyncio.sleep(0)
async def answer(request):
    asked = json.loads(await request.body())
    if asked.get("stream"):
        return StreamingResponse(events(asked["max_tokens"]), media_type="text/event-stream")
    return Response(ANSWER, media_type="application/json")
app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning",
            loop="uvloop", http="httptools")
"""
LITELLM = {
    "model_list": [
        {
            "model_name": "fake",
            "litellm_params": {"model": "openai/fake", "api_key": "x", "mock_response": "a" * 64},
        }
    ],
    "litellm_settings": {"cache": True, "cache_params": {"type": "local"}},
    "general_settings": {"master_key": KEY},
}


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk."""

    server: str
    connections: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_request: float  # of the server's process alone
    failed: int


def main() -> int:
    args = _parse()
    if shutil.which("wrk") is None or len(CORES) < 2:
        raise SystemExit("wrk and two cores are needed; on Debian: apt-get install wrk")
    os.sched_setaffinity(0, {CORES[1]})
    loads: list[Load] = []
    streams: list[Streams] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        servers: list[tuple[str, Any]] = [("bare Starlette", lambda: starlette())]
        servers += [
            (name, lambda layers=layers: nonet(scratch, layers)) for name, layers in LAYERS.items()
        ]
        if args.workdir is not None:
            servers.append(("LiteLLM proxy", lambda: litellm(args.workdir, scratch)))
        for name, start in [] if args.latency else servers:
            with start() as (url, pid):
                warm(url)
                for connections in args.connections:
                    loads.append(load(name, url, pid, connections, args.seconds))
                    print(loads[-1], flush=True)
        plain = [("no layers", []), ("exact cache, ledger", LAYERS["exact cache, ledger"])]
        streaming = [
            servers[0],
            *[(name, lambda layers=x: nonet(scratch, layers)) for name, x in plain],
        ]
        for name, start in [] if args.latency else streaming:
            with start() as (url, pid):
                _move_engine(pid)
                for number in STREAMS:
                    found = measure_streams(name, url, pid, STREAMED, _headers(), number)
                    streams.append(asyncio.run(found))
                    print(streams[-1], flush=True)
        added = latency(scratch, args.turns)
    report(args, loads, added, streams)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, help="folder of results.json")
    add(
        "--workdir",
        type=Path,
        help="where LiteLLM's environment is made; without it, it is left out",
    )
    add("--seconds", type=int, default=5, help="of each run")
    add("--connections", type=int, nargs="+", default=[1, 32, 128])
    add("--turns", type=int, default=2000, help="of the latency run; each asks every server once")
    add("--latency", action="store_true", help="only what layers add to the latency of a request")
    return parser.parse_args()


@contextlib.contextmanager
def nonet(scratch: Path, layers: list[str], store_sync: str = "full") -> Iterator[tuple[str, int]]:
    """A server over the scripted engine, with a key and a price table."""
    prices = scratch / "prices.json"
    prices.write_text('{"fake": {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7}}')
    gateway = {
        "gateway": layers, "data_dir": tempfile.mkdtemp(dir=scratch), "price_table": str(prices),
        "store_sync": store_sync,
    }  # fmt: skip
    job = {
        "fake": {"max_model_len": 8192},
        "server": {"port": 0, "api_keys": [KEY], "log_level": "warning"},
        "gateway": gateway if layers else {},
    }
    command = [sys.executable, "-m", "tests.system.server_main", json.dumps(job)]
    with _started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if b"listening on" in line)
        yield line.split()[2].decode() + "/v1/chat/completions", process.pid


@contextlib.contextmanager
def starlette() -> Iterator[tuple[str, int]]:
    port = _free_port()
    with _started([sys.executable, "-c", STARLETTE, str(port)]) as process:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        _wait(url)
        yield url, process.pid


@contextlib.contextmanager
def litellm(workdir: Path, scratch: Path) -> Iterator[tuple[str, int]]:
    """LiteLLM's proxy with its own cache in memory and a canned answer: the engine is not measured here either."""
    environment = workdir / "litellm"
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "litellm[proxy]"], check=True)
    config = scratch / "litellm.yaml"
    config.write_text(json.dumps(LITELLM))  # JSON is YAML
    port = _free_port()
    command = [
        str(environment / "bin" / "litellm"), "--config", str(config), "--port", str(port), "--num_workers", "1",
    ]  # fmt: skip
    with _started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        _wait(url, limit_s=120)
        yield url, process.pid


def warm(url: str) -> None:
    """The answer is made, kept, and known by its bytes."""
    for _ in range(50):
        answer = httpx.post(url, json=BODY, headers=_headers(), timeout=30)
        assert answer.status_code == 200, answer.text


def load(name: str, url: str, pid: int, connections: int, seconds: int) -> Load:
    """wrk for some seconds, and the server's CPU time meanwhile."""
    before = _cpu_s(pid)
    text = _wrk(url, connections, seconds, f"wrk.body = [==[{json.dumps(BODY)}]==]\n")
    cpu_s = _cpu_s(pid) - before
    requests = int(_found(r"(\d+) requests in", text))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return Load(
        name,
        connections,
        float(_found(r"Requests/sec:\s+([\d.]+)", text)),
        *_percentiles(text),
        round(1e6 * cpu_s / requests, 1),
        int(failed.group(1)) if failed else 0,
    )


def latency(scratch: Path, turns: int) -> list[Added]:
    """Requests that differ: every layer does its work and the engine answers. All servers run at once and are asked in
    turn."""
    both = LAYERS["exact cache, ledger"]
    subjects = [
        ("no layers", [], "full"),
        ("exact cache", LAYERS["exact cache"], "full"),
        ("exact cache, ledger, store_sync=normal", both, "normal"),
        ("exact cache, ledger", both, "full"),
    ]
    with contextlib.ExitStack() as running:
        urls = []
        for name, layers, store_sync in subjects:
            url, pid = running.enter_context(nonet(scratch, layers, store_sync))
            _move_engine(pid)
            urls.append((name, url))
        return measure_added(urls, BODY, _headers(), turns=turns, disk=scratch)


def report(
    args: argparse.Namespace, loads: list[Load], added: list[Added], streams: list[Streams]
) -> None:
    lines = ["| server | connections | requests/s | p50 ms | p99 ms | CPU us/request | failed |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        "| " + " | ".join(str(value) for value in asdict(row).values()) + " |" for row in loads
    ]
    lines += [
        "",
        "| layers, nothing cached | requests | p50 ms | p99 ms | added p50 | added p99 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        "| " + " | ".join(str(value) for value in asdict(row).values()) + " |" for row in added
    ]
    lines += [
        "",
        "| streams of | streams | events | tokens | tokens/s | events/s | CPU us/event | events per CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        "| " + " | ".join(str(value) for value in asdict(row).values()) + " |" for row in streams
    ]
    print("\n".join(lines))
    if args.out is None:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    result = {
        "command": sys.argv,
        "commit": commit.stdout.strip(),
        "load_average": os.getloadavg(),
        "hits": [asdict(row) for row in loads],
        "added": [asdict(row) for row in added],
        "streams": [asdict(row) for row in streams],
    }
    (args.out / "results.json").write_text(json.dumps(result, indent=1))
    (args.out / "results.md").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def _started(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process, and what it starts, on the first core."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        preexec_fn=lambda: os.sched_setaffinity(0, {CORES[0]}),
        **streams,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _move_engine(pid: int) -> None:
    """The engine to the other core: what is measured is the server's process."""
    for child in psutil.Process(pid).children(recursive=True):
        child.cpu_affinity([CORES[1]])


def _wait(url: str, limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(url, json=BODY, headers=_headers(), timeout=10).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"no answer at {url}")


def _headers() -> dict[str, str]:
    return {"authorization": f"Bearer {KEY}"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wrk(url: str, connections: int, seconds: int, lua: str) -> str:
    """What wrk prints after posting for some seconds, as `lua` says."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write('wrk.method = "POST"\n')
        for header, value in {**_headers(), "content-type": "application/json"}.items():
            script.write(f'wrk.headers["{header}"] = "{value}"\n')
        script.write(lua)
        script.flush()
        command = [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", script.name, url,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _percentiles(text: str) -> tuple[float, float]:
    """The median and the 99th percentile in milliseconds."""
    return _ms(_found(r"\n\s+50%\s+(\S+)", text)), _ms(_found(r"\n\s+99%\s+(\S+)", text))


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match.group(1)


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return round(float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit], 3)


if __name__ == "__main__":
    sys.exit(main())
