"""nonet on one GPU beside vLLM's published rows, naive serving and the device's own ceilings, in one call.

    PYTHONPATH=src python benchmarks/gpu_peers.py --out benchmarks/<date>-<device>-peers --weights bf16
    PYTHONPATH=src python benchmarks/gpu_peers.py --out benchmarks/<date>-<device>-peers --weights fp8
    PYTHONPATH=src python benchmarks/gpu_peers.py --out DIR --parts ceilings,decode --set max_tokens_per_step=16384
    PYTHONPATH=src python benchmarks/gpu_peers.py --out DIR --vllm /path/to/its/venv/bin/python

bf16 takes about six minutes on an H100 with every part, fp8 about four (it leaves out the two baselines, which do not
depend on it). Every part writes its figures as it goes, so a run that ends early keeps what it has; parts that need
memory of their own run in processes of their own, each until the budget ends. With vLLM's Python at hand, `--vllm` runs
it too, and its rows are of the same device and run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpu_parts.job import SIZES, Job
from gpu_parts.options import option
from gpu_parts.table import table
from shapes import SHAPES, write_shape

# Parts by the process they share, in the order they run.
PROCESSES = (
    ("ceilings", "mix", "decode", "prefill"),
    ("latency",),
    ("naive",),
    ("huggingface",),
    ("vllm",),
    ("vllm-latency",),
)
OF_VLLM = ("vllm", "vllm-latency")
PARTS = tuple(part for parts in PROCESSES for part in parts)
DEFAULT_PARTS = {"bf16": PARTS[:7], "fp8": PARTS[:5]}
WEIGHT_WIDTH = 1e-3  # as vLLM's dummy weights


def main(given: Sequence[str] | None = None) -> int:
    """0 when every part was measured."""
    arguments = _arguments(given)
    job = Job(
        shape=arguments.shape,
        weights=arguments.weights,
        device=arguments.device,
        sizes=arguments.sizes,
        out=str(arguments.out),
        commit=arguments.commit,
        options=dict(arguments.set),
    )
    wanted = arguments.parts or DEFAULT_PARTS[job.weights] + (OF_VLLM if arguments.vllm else ())
    if arguments.here:
        measure(job, wanted, arguments.vllm)
        return 0
    deadline = time.monotonic() + arguments.budget_s
    failed = []
    for parts in PROCESSES:
        chosen = [part for part in parts if part in wanted]
        if chosen and not _measure_apart(arguments, chosen, deadline - time.monotonic()):
            failed += chosen
    print(table(arguments.out, job.weights))
    if failed:
        print(f"not complete: {', '.join(failed)}")
    return int(bool(failed))


def measure(job: Job, parts: Sequence[str], vllm_python: str = "") -> None:
    """In this process, in one engine where parts share one."""
    from gpu_parts import engine, huggingface, latency, vllm

    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(Path(folder), job.shape, WEIGHT_WIDTH)
        if "ceilings" in parts:
            _say("ceilings")
            engine.ceilings(job)
        shared = [part for part in parts if part in engine.ENGINE_PARTS]
        if shared:
            engine.with_engine(job, model, shared, _say)
        for part, run in (
            ("latency", latency.latency),
            ("naive", engine.naive),
            ("huggingface", huggingface.huggingface),
        ):
            if part in parts:
                _say(part)
                run(job if part == "latency" else replace(job, options={}), model)
        if "vllm" in parts:
            _say("vllm")
            vllm.vllm(job, model, vllm_python)
        if "vllm-latency" in parts:
            _say("vllm-latency")
            vllm.vllm_latency(job, model, vllm_python)


def _measure_apart(arguments: argparse.Namespace, parts: Sequence[str], seconds: float) -> bool:
    """Whether all of them ended well before the budget did."""
    if seconds <= 0:
        return False
    command = [sys.executable, __file__, "--here", "--parts", ",".join(parts)]
    for name in ("shape", "weights", "device", "sizes", "out", "commit", "vllm"):
        value = getattr(arguments, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    for name, value in arguments.set:
        command += ["--set", f"{name}={json.dumps(value)}"]
    # In a session of its own, so that an engine process that it started ends with it and leaves the device.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        _say(f"{', '.join(parts)}: stopped at the end of the budget")
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _say(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--weights", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--parts", type=_parts, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--sizes", choices=sorted(SIZES), default="full")
    parser.add_argument("--budget-s", type=float, default=560.0, help="seconds for all parts")
    parser.add_argument("--commit", help="what runs, where there is no git to ask")
    parser.add_argument(
        "--set", type=option, action="append", default=[], metavar="OPTION=VALUE",
        help="an option of nonet's engine, value as JSON or text",
    )  # fmt: skip
    parser.add_argument(
        "--vllm", default="", metavar="COMMAND", help="a command that starts vLLM's Python"
    )
    parser.add_argument("--here", action="store_true", help="measure in this process")
    chosen = parser.parse_args(given)
    if not chosen.vllm and set(chosen.parts or ()) & set(OF_VLLM):
        parser.error(f"{', '.join(OF_VLLM)} need --vllm COMMAND, which starts vLLM's Python")
    return chosen


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
