"""vLLM on the work that `gpu_peers.py --vllm` hands over. A script of its own, for vLLM's Python may hold no nonet.

    python benchmarks/vllm_peer.py WORK.json RESULT.json

WORK.json holds vLLM's options and some of `mix`, `decode`, `prefill` and `arrivals`; what is measured is written to
RESULT.json after each part.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from gpu_parts.rows import decode_rows, prefill_rows

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
    timed = functools.partial(seconds, llm)
    decode = work["decode"]
    for rows in decode_rows(
        timed, decode["batches"], decode["prompt"], decode["output"], work["highest_id"]
    ):
        keep(decode={"rows": rows})
    for rows in prefill_rows(timed, work["prefill"], work["highest_id"]):
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


if __name__ == "__main__":
    main()
