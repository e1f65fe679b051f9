"""Compare nonet on a CPU with OpenVINO GenAI, vLLM, llama.cpp and Hugging Face, all in one run.

    python benchmarks/cpu_peers.py --workdir ~/peers --threads 2

Installs what is missing under --workdir (several GB, a C++ build of ten minutes), then loads all engines of a model
side by side and measures them in turn: prefill of 512 tokens, decode of one sequence, 8 and 32 sequences at once.
Run it with the interpreter of nonet's environment.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from peers.cases import Case, Job
from peers.plan import PEERS, Entry, base_environment, entries
from peers.report import machine, write
from peers.run import Row, Runner
from peers.workdir import MODELS, Workdir


def main() -> int:
    args = _parse()
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    if len(cores) < args.threads:
        raise SystemExit(f"--threads is {args.threads}; this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores)  # inherited by every process started below
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running peer ends too
    workdir = Workdir(args.workdir)
    job = Job("", "", args.threads, _cases(args), args.repeats, args.seed, 1000, 48_000)
    chosen = [
        entries(workdir, [MODELS[name]], args.peers, args.nonet_formats, cores)
        for name in args.models
    ]
    if args.install_only:
        _install([entry for of_model in chosen for entry in of_model])
        return 0
    runner = Runner(
        workdir, job, base_environment(args.threads), waits=not args.no_wait,
        idle_timeout_s=args.idle_timeout, timeout_s=args.timeout, locks=args.lock, log=_log,
    )  # fmt: skip
    on = machine(cores)
    done: list[Row] = []
    for of_model in chosen:
        before = list(done)
        done += runner.run(
            of_model, lambda rows, before=before: write(args.out, job, [*before, *rows], on)
        )
    print(write(args.out, job, done, on).read_text())
    return 1 if any(row.error and row.peer == "nonet" for row in done) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="where models, venvs and builds are kept")
    add("--out", type=Path, help="folder of results.json and results.md")
    add("--threads", type=int, default=2, help="cores and threads for every engine")
    add("--models", nargs="+", choices=sorted(MODELS), default=["smollm2", "qwen"])
    add("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    add("--nonet-formats", nargs="+", default=["dense", "native", "int8", "int4"],
        help="weight formats of nonet's rows")  # fmt: skip
    add("--prefill", type=int, default=512, help="prompt tokens of the prefill case")
    add("--single-prompt", type=int, default=16, help="prompt tokens of the batch-1 case")
    add("--prompt", type=int, default=128, help="prompt tokens of the batch cases")
    add("--output", type=int, default=128, help="output tokens")
    add("--concurrency", type=int, nargs="*", default=[8, 32], help="batch cases")
    add("--repeats", type=int, default=5, help="rounds of every case")
    add("--seed", type=int, default=0)
    add("--no-wait", action="store_true", help="measure on a busy machine (smoke tests only)")
    add("--idle-timeout", type=float, default=900.0, help="seconds to wait for an idle machine")
    add("--timeout", type=float, default=3600.0, help="seconds that loading, or one turn, may take")
    add("--lock", type=Path, nargs="*", default=[],
        help="files to lock during a round, for other work on the machine that locks them too")  # fmt: skip
    add("--install-only", action="store_true", help="prepare --workdir and stop")
    args = parser.parse_args()
    if args.out is None:
        args.out = Path(__file__).parent / f"{time.strftime('%Y-%m-%d')}-cpu-peers"
    args.out = args.out.resolve()
    return args


def _cases(args: argparse.Namespace) -> list[Case]:
    return [
        Case("prefill", 1, args.prefill, 1),
        Case("decode_1", 1, args.single_prompt, args.output),
        *(Case(f"batch_{n}", n, args.prompt, args.output) for n in args.concurrency),
    ]


def _install(rows: list[Entry]) -> None:
    for entry in rows:
        _log(f"preparing {entry.peer}, {entry.model.title}, {entry.label}")
        entry.model_path()
        entry.python()


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
