"""Where the time of a decode step goes: matrices, attention, other operations, sampling, scheduler, messaging.

    python benchmarks/step_times.py --model smollm2 --out benchmarks/<date>-<device>-step-times

Forward operations are timed inside the native program; the parts around it by the engine's own counters; messaging is
what a step takes longer when the engine runs in its own process and the tokens are read over the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.async_llm import AsyncLLM
from nonet.engine.engine import Engine
from nonet.engine.llm import LLM
from nonet.kernels.native.recording import NativeRecording, time_program
from nonet.kernels.ops import StepShape
from nonet.runner.runner import Runner

GROUPS = {"linear": "matrices", "logits": "matrices", "attention": "attention"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weight-format", default="dense")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    options = {
        "weight_format": arguments.weight_format,
        "max_model_len": 1024,
        "num_blocks": 2048,
        "prefix_cache": False,
    }
    rows = [_measure(arguments, batch, options) for batch in arguments.batches]
    parts = [
        "matrices",
        "attention",
        "other operations",
        "prepare",
        "sample",
        "scheduler",
        "messaging",
        "step",
    ]
    print(
        f"{'ms per decode step':20}"
        + "".join(f"{'batch ' + str(row['batch']):>12}" for row in rows)
    )
    for part in parts:
        print(f"{part:20}" + "".join(f"{row[part]:12.3f}" for row in rows))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        record = {
            "model": arguments.model,
            "weight_format": arguments.weight_format,
            "unit": "ms per decode step",
        }
        target = arguments.out / f"{Path(arguments.model).stem}-{arguments.weight_format}.json"
        target.write_text(json.dumps({**record, "rows": rows}, indent=2) + "\n")


def _measure(
    arguments: argparse.Namespace, batch: int, options: dict[str, object]
) -> dict[str, float]:
    rng = random.Random(batch)
    prompts = [[rng.randrange(1000, 40000) for _ in range(arguments.prompt)] for _ in range(batch)]
    params = SamplingParams(temperature=0.0, max_tokens=arguments.output, ignore_eos=True)
    with LLM(arguments.model, **options) as llm:
        llm.generate(prompts, params)
        row = _in_process(llm, prompts, params)
    row["messaging"] = max(
        0.0, asyncio.run(_out_of_process(arguments.model, prompts, params, options)) - row["step"]
    )
    return {"batch": batch, **row}


def _in_process(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> dict[str, float]:
    """Means over the decode steps of one run; operations from replays of a step in its middle."""
    engine, runner = llm.engine, llm.engine.parts.executor.runner
    for number, prompt in enumerate(prompts):
        engine.add(Request(request_id=f"step-{number}", prompt_ids=prompt, params=params))
    while engine.stats().generation_tokens % (len(prompts) * params.max_tokens) < 2 * len(prompts):
        engine.step()
    before = (*_counters(engine, runner), engine.times.steps, time.perf_counter())
    operations: Counter[str] = Counter()
    for _ in range(params.max_tokens // 2):
        engine.step()
    after = (*_counters(engine, runner), engine.times.steps, time.perf_counter())
    recording = runner.recording
    if isinstance(recording, NativeRecording):
        shape = StepShape(len(prompts), len(prompts), len(prompts), 1)
        for name, seconds in time_program(recording, shape, repeats=9).items():
            operations[GROUPS.get(name, "other operations")] += 1000 * seconds
    while engine.has_work:
        engine.step()
    plan, apply, prepare, sample, steps, wall = (b - a for a, b in zip(before, after, strict=True))
    return {
        **{name: operations[name] for name in ("matrices", "attention", "other operations")},
        "prepare": 1000 * prepare / steps,
        "sample": 1000 * sample / steps,
        "scheduler": 1000 * (plan + apply) / steps,
        "step": 1000 * wall / steps,
    }


def _counters(engine: Engine, runner: Runner) -> tuple[float, float, float, float]:
    return (
        engine.times.plan_s,
        engine.times.apply_s,
        runner.times.prepare_s,
        runner.times.sample_s,
    )


async def _out_of_process(
    model: str, prompts: list[list[int]], params: SamplingParams, options: dict[str, object]
) -> float:
    """Milliseconds between deliveries in the middle of a run, as a reader in another process sees them."""
    async with AsyncLLM(model, **options) as llm:

        async def read(prompt: list[int]) -> list[float]:
            return [time.perf_counter() async for _ in llm.generate(prompt, params)]

        times = (await asyncio.gather(*(read(prompt) for prompt in prompts)))[0]
    middle = times[len(times) // 4 : 3 * len(times) // 4]
    return 1000 * (middle[-1] - middle[0]) / (len(middle) - 1)


if __name__ == "__main__":
    main()
