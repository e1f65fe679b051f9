"""Where a step's time goes, kernel by kernel, beside what its bytes and operations would take at the device's rates.

    PYTHONPATH=src python benchmarks/step_profile.py --weights bf16 --out benchmarks/<date>-<device>-profile
    PYTHONPATH=src python benchmarks/step_profile.py --weights fp8 --out DIR --batches 1 64 256 --set max_num_seqs=256

One decode step for each batch and one prefill step, of dummy weights of the shape; about 40 seconds on an H100. Idle is
the share of several decode steps in which nothing ran on the device, under the profiler, which slows the host: an upper
bound. `ms` beside it was taken without the profiler.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpu_parts.job import SIZES, Job, keep
from gpu_parts.options import option
from gpu_parts.trace import Kernel, Span, by_kernel, floors, idle_share, record
from nonet.bench.device.ceilings import Ceilings, measure_ceilings
from nonet.bench.device.ceilings import Sizes as CeilingSizes
from nonet.bench.roofline.work import ModelWork
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from shapes import SHAPES, write_shape

WARM_UP = 6
BETWEEN_STEPS_US = 10.0  # gaps inside a replayed graph are about a microsecond
SHOWN = 12


def main(given: Sequence[str] | None = None) -> None:
    arguments = _arguments(given)
    job = Job(
        shape=arguments.shape, weights=arguments.weights, device=arguments.device, sizes=arguments.sizes,
        out=str(arguments.out), commit=arguments.commit, options=dict(arguments.set),
    )  # fmt: skip
    device = torch.device(job.device)
    small = CeilingSizes(copy_bytes=1 << 20, product=64) if job.sizes == "tiny" else None
    ceilings = measure_ceilings(device, small)
    needed = max(arguments.batches)
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(Path(folder), job.shape, 1e-3)
        with LLM(model, **job.engine_options(max_num_seqs=needed)) as llm:
            profiler = Profile(job, llm, ceilings, arguments.steps)
            for batch in arguments.batches:
                profiler.decode(batch, arguments.context)
            profiler.prefill(*arguments.prefill)


class Profile:
    """Profiles steps of one engine; every one is kept and shown as soon as it is there."""

    def __init__(self, job: Job, llm: LLM, ceilings: Ceilings, steps: int) -> None:
        self._job, self._llm, self._steps = job, llm, steps
        self._work = ModelWork(llm.spec, llm.resolved)
        is_float8 = job.weights == "fp8"
        self._arithmetic = "float8" if is_float8 else "bfloat16"
        self._flops_per_s = ceilings.peak(self._arithmetic)
        self._bytes_per_s = ceilings.copy_bytes_per_s
        self._rows: dict[str, object] = {}
        self._made = 0

    def decode(self, batch: int, context: int) -> None:
        """Some steps at about that context: the prompts are as long as leaves it in the middle."""
        engine = self._llm.engine
        length = max(1, context - WARM_UP - self._steps)
        names = self._add(batch, length, 4 * (WARM_UP + self._steps))
        self._until_first_tokens(names)
        for _ in range(WARM_UP):
            engine.step()
        times = []
        for _ in range(self._steps):
            began = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - began)
        spans = record(lambda: self._and_wait(self._some_steps), self._job.device)
        self._drop(names)
        middle = length + WARM_UP + 1.5 * self._steps
        self._keep(
            f"decode {batch}", spans, self._steps, batch, 1, middle, statistics.median(times)
        )

    def prefill(self, batch: int, length: int) -> None:
        """As many steps as the prompts take."""
        self._drop(self._prompts_done(batch, length))
        began = time.perf_counter()
        self._drop(self._prompts_done(batch, length))
        seconds = time.perf_counter() - began
        names = self._add(batch, length, 2)
        spans = record(
            lambda: self._and_wait(lambda: self._until_first_tokens(names)), self._job.device
        )
        self._drop(names)
        self._keep(f"prefill {batch}x{length}", spans, 1, batch, length, length, seconds)

    def _keep(
        self, name: str, spans: list[Span], steps: int, batch: int, queries: int, context: float, seconds: float
    ) -> None:  # fmt: skip
        kernels = by_kernel(spans, steps)
        busy_us = sum(kernel.us for kernel in kernels)
        kinds = [
            asdict(floor) | {"us": us, "share_of_floor": floor.floor_us / us if us else None}
            for floor in floors(self._work, batch, queries, context, self._bytes_per_s, self._flops_per_s)
            if (us := sum(kernel.us for kernel in kernels if kernel.kind == floor.kind)) is not None
        ]  # fmt: skip
        row = {
            "ms": 1e3 * seconds,
            "busy_ms": busy_us / 1e3,
            "idle_share": idle_share(spans),
            "idle_share_between_steps": idle_share(spans, BETWEEN_STEPS_US),
            "kinds": kinds,
            "kernels": [asdict(kernel) for kernel in kernels],
        }
        self._rows[name] = row
        figures = {
            "rows": self._rows,
            "bytes_per_s": self._bytes_per_s,
            "flops_per_s": self._flops_per_s,
            "arithmetic": self._arithmetic,
        }
        keep(self._job, "profile", figures, msgspec.to_builtins(self._llm.resolved))
        print(describe(name, row, kernels), flush=True)

    def _add(self, batch: int, length: int, max_tokens: int) -> list[str]:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        high = min(120_000, self._llm.spec.vocab_size)
        names = []
        for _ in range(batch):
            self._made += 1
            rng = random.Random(self._made)
            names.append(f"profile-{self._made}")
            prompt = [rng.randrange(high // 100, high) for _ in range(length)]
            self._llm.engine.add(Request(request_id=names[-1], prompt_ids=prompt, params=params))
        return names

    def _prompts_done(self, batch: int, length: int) -> list[str]:
        names = self._add(batch, length, 2)
        self._until_first_tokens(names)
        return names

    def _until_first_tokens(self, names: Sequence[str]) -> None:
        waiting = set(names)
        while waiting:
            for delta in self._llm.engine.step():
                if delta.error is not None:
                    raise RuntimeError(delta.error)
                if delta.token_ids:
                    waiting.discard(delta.request_id)

    def _some_steps(self) -> None:
        for _ in range(self._steps):
            self._llm.engine.step()

    def _and_wait(self, run: Callable[[], object]) -> None:
        run()
        if self._job.device == "cuda":
            torch.cuda.synchronize()

    def _drop(self, names: Sequence[str]) -> None:
        self._llm.engine.abort(names)
        while self._llm.engine.has_work:
            self._llm.engine.step()


def describe(name: str, row: dict[str, Any], kernels: Sequence[Kernel]) -> str:
    """A few lines for the terminal."""
    lines = [
        f"\n{name}: {row['ms']:.2f} ms, busy {row['busy_ms']:.2f} ms, idle {row['idle_share']:.1%} "
        f"(in gaps over {BETWEEN_STEPS_US:.0f} us: {row['idle_share_between_steps']:.1%})"
    ]
    for kind in row["kinds"]:
        share = (
            "" if kind["share_of_floor"] is None else f", {kind['share_of_floor']:.0%} of the limit"
        )
        lines.append(
            f"  {kind['kind']}: {kind['us']:,.0f} us, floor {kind['floor_us']:,.0f} us "
            f"({kind['num_bytes'] / 1e9:.3f} GB, {kind['flops'] / 1e12:.3f} TFLOP){share}"
        )
    lines += [
        f"  {kernel.us:>9,.0f} us {kernel.share:>6.1%} {kernel.count:>6.1f}x  {kernel.kind}: {kernel.name[:80]}"
        for kernel in kernels[:SHOWN]
    ]
    return "\n".join(lines)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--weights", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--sizes", choices=sorted(SIZES), default="full")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--context", type=int, default=256, help="of the decode steps")
    parser.add_argument(
        "--prefill", type=int, nargs=2, default=[4, 2048], metavar=("BATCH", "LENGTH")
    )
    parser.add_argument("--steps", type=int, default=8, help="decode steps in a profile")
    parser.add_argument("--commit", help="what runs, where there is no git to ask")
    parser.add_argument("--set", type=option, action="append", default=[], metavar="OPTION=VALUE")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
