"""vLLM on the work that `gpu_peers.py --vllm` hands over. A script of its own, for vLLM's Python may hold no nonet.

    python benchmarks/vllm_peer.py WORK.json RESULT.json

WORK.json holds vLLM's options and some of `mix`, `decode`, `prefill` and `arrivals`; what is measured is written to
RESULT.json after each part.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

Work = dict[str, Any]


def main() -> None:
    work: Work = json.loads(Path(sys.argv[1]).read_text())
    target = Path(sys.argv[2])
    result: dict[str, Any] = {}

    def keep(**figures: object) -> None:
        result.update(figures)
        target.write_text(json.dumps(result))

    import torch
    import vllm

    keep(versions={"vllm": vllm.__version__, "torch": torch.__version__})
    if "arrivals" in work:
        asyncio.run(serve(work, keep))
    else:
        generate(work, keep)


def generate(work: Work, keep: Any) -> None:
    """Everything at once, as `vllm.LLM` takes it."""
    from vllm import LLM

    began = time.perf_counter()
    llm = LLM(**work["options"])
    load_s = time.perf_counter() - began
    seconds(llm, [item["prompt_ids"] for item in work["mix"][:4]], 8)
    keep(start={"load_s": load_s, "first_requests_s": time.perf_counter() - began - load_s})
    items = work["mix"]
    counts = [item["output_len"] for item in items]
    runs = []
    for _ in range(2):
        took = seconds(llm, [item["prompt_ids"] for item in items], counts)
        runs.append({"duration_s": took, "output_tokens_per_s": sum(counts) / took})
        keep(mix={"output_tokens": sum(counts), "runs": runs})
    rows: dict[str, Any] = {}
    for batch in work["decode"]["batches"]:
        best = None
        for run in range(2):
            prompts = made_up(batch, work["decode"]["prompt"], f"decode {batch} {run}", work)
            first_s = seconds(llm, prompts, 1)
            all_s = seconds(llm, prompts, work["decode"]["output"])
            if best is None or all_s < best[1]:
                best = (first_s, all_s)
        assert best is not None
        first_s, all_s = best
        count = work["decode"]["output"]
        rows[str(batch)] = {
            "tok_per_s": batch * count / all_s,
            "ms_per_step": 1e3 * (all_s - first_s) / (count - 1),
            "first_s": first_s,
            "all_s": all_s,
        }
        keep(decode={"rows": rows})
    rows = {}
    for batch, length, repeats in work["prefill"]:
        for run in range(2):
            seconds(llm, made_up(batch, length, f"prefill warm-up {run}", work), 1)
        times = [
            seconds(llm, made_up(batch, length, f"prefill {run}", work), 1)
            for run in range(repeats)
        ]
        middle = statistics.median(times)
        rows[f"{batch}x{length}"] = {
            "seconds": times,
            "ms": 1e3 * middle,
            "tok_per_s": batch * length / middle,
        }
        keep(prefill={"rows": rows})


def seconds(llm: Any, prompts: list[list[int]], outputs: int | list[int]) -> float:
    """Of one call for all of them; every token that was asked for must come."""
    counts = [outputs] * len(prompts) if isinstance(outputs, int) else outputs
    given = [{"prompt_token_ids": ids} for ids in prompts]
    params = [greedy(count) for count in counts]
    began = time.perf_counter()
    made = llm.generate(given, params, use_tqdm=False)
    took = time.perf_counter() - began
    short = [
        number for number, one in enumerate(made) if len(one.outputs[0].token_ids) != counts[number]
    ]
    if short:
        raise RuntimeError(f"{len(short)} requests ended early, the first is {short[0]}")
    return took


async def serve(work: Work, keep: Any) -> None:
    """Requests that come at their own times, at the asynchronous engine, without HTTP."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    began = time.perf_counter()
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**work["options"]))
    start_s = time.perf_counter() - began
    try:
        items = work["mix"]
        # As nonet: all at once, each a token longer than the last, so that the batch passes through every size.
        warm = [
            {"prompt_ids": item["prompt_ids"][:32], "output_len": number + 2}
            for number, item in enumerate(items[: work["warm_up"]])
        ]
        await send(engine, warm, [0.0] * len(warm), "warm")
        more = items[: work["warm_up"] // 4]
        await send(engine, more, [0.0] * len(more), "more")
        rows = {}
        for rate, due_s in work["arrivals"].items():
            rows[rate] = await send(engine, items[: len(due_s)], due_s, rate)
            keep(start={"load_s": start_s}, requests=rows)
    finally:
        engine.shutdown()


async def send(
    engine: Any, items: list[dict[str, Any]], due_s: list[float], name: str
) -> list[dict[str, Any]]:
    start = time.monotonic()
    return await asyncio.gather(
        *(one(engine, number, items[number], due_s[number], start, name) for number in range(len(items)))
    )  # fmt: skip


async def one(
    engine: Any, index: int, item: dict[str, Any], due_s: float, start: float, name: str
) -> dict[str, Any]:
    await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
    sent_s = time.monotonic() - start
    deliveries: list[float] = []
    seen = 0
    prompt = {"prompt_token_ids": item["prompt_ids"]}
    async for output in engine.generate(prompt, greedy(item["output_len"]), f"{name}-{index}"):
        count = len(output.outputs[0].token_ids)
        if count > seen:
            seen = count
            deliveries.append(time.monotonic() - start)
    return {
        "index": index, "due_s": due_s, "sent_s": sent_s, "delivery_s": deliveries,
        "prompt_tokens": len(item["prompt_ids"]), "output_tokens": seen,
        "error": None if seen == item["output_len"] else f"{seen} of {item['output_len']} tokens came",
    }  # fmt: skip


def greedy(count: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)


def made_up(batch: int, length: int, name: str, work: Work) -> list[list[int]]:
    rng = random.Random(name)
    high = work["highest_id"]
    return [[rng.randrange(high // 100, high) for _ in range(length)] for _ in range(batch)]


if __name__ == "__main__":
    main()
