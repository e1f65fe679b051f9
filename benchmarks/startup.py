"""How long `import nonet` and `nonet serve` take until they are ready, with warm caches.

    python benchmarks/startup.py --model smollm2 --out benchmarks/<date>-<device>-startup

Every start is a fresh process. A first one, not counted, fills the caches: the compiled kernels, Python's byte code,
the files of the model in memory. A server is ready when /readyz answers 200; the clock starts with its process. With
/proc, the threads of each process are counted when it is ready.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from peers.report import commit, machine

IMPORT = """
import sys, time
began = time.perf_counter()
import {module}
print(time.perf_counter() - began, "torch" in sys.modules)
"""
LIMITS_S = {"import nonet": 0.5, "nonet serve": 5.0}  # what the project promises


def main() -> int:
    args = _parse()
    rows = {
        "import nonet": _repeat(args.rounds, lambda: _import("nonet")),
        "import nonet.engine.llm": _repeat(args.rounds, lambda: _import("nonet.engine.llm")),
        "nonet serve": _repeat(args.rounds, lambda: _serve(args.model, args.serve_args)),
    }
    print(f"{'seconds':28}{'median':>8}{'best':>8}{'worst':>8}{'limit':>8}")
    for name, row in rows.items():
        seconds = [one["seconds"] for one in row]
        shown = f"{statistics.median(seconds):8.2f}{min(seconds):8.2f}{max(seconds):8.2f}"
        print(f"{name:28}{shown}{LIMITS_S.get(name, ''):>8}")
    print("threads when ready:", rows["nonet serve"][-1]["threads"])
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        record = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "commit": commit(),
            "machine": machine(sorted(os.sched_getaffinity(0))),
            "model": args.model,
            "limits_s": LIMITS_S,
            "rows": rows,
        }
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    late = [
        name
        for name, limit in LIMITS_S.items()
        if statistics.median(one["seconds"] for one in rows[name]) > limit
    ]
    return 1 if late else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--serve-args", nargs="*", default=[], help="more flags of nonet serve")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder of results.json")
    return parser.parse_args()


def _repeat(rounds: int, measure: Callable[[], dict[str, object]]) -> list[dict[str, object]]:
    measure()
    return [measure() for _ in range(rounds)]


def _import(module: str) -> dict[str, object]:
    command = [sys.executable, "-c", IMPORT.format(module=module)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    seconds, has_torch = done.stdout.split()
    return {"seconds": float(seconds), "loads_torch": has_torch == "True"}


def _serve(model: str, flags: list[str]) -> dict[str, object]:
    command = [sys.executable, "-m", "nonet.cli.main", "serve", model, "--port", "0", *flags]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next(
            (line.split()[-1] for line in process.stdout if line.strip().startswith("listening")),
            None,
        )
        if url is None:
            raise SystemExit(f"{' '.join(command)} ended with {process.wait()}")
        while httpx.get(f"{url}/readyz").status_code != 200:
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        threads = _threads(psutil.Process(process.pid))
        body = {"model": model, "prompt": "One two three", "max_tokens": 1, "temperature": 0}
        httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status()
        return {
            "seconds": seconds,
            "first_token_s": time.perf_counter() - began,
            "threads": threads,
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _threads(server: psutil.Process) -> dict[str, int]:
    engine = [child for child in server.children() if "nonet.engine.process" in child.cmdline()]
    return {
        "server": server.num_threads(),
        "engine": sum(process.num_threads() for process in engine),
    }


def _environment() -> dict[str, str]:
    """The caller's, but byte code is written, which is one of the caches."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    sys.exit(main())
