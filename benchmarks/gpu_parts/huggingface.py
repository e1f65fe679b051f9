"""Hugging Face `generate` on random weights: static, left-padded batches in order of arrival, fp16, sdpa."""

from __future__ import annotations

import time
from typing import Any

import torch

from gpu_parts.engine import the_mix
from gpu_parts.job import Job, keep
from nonet.bench.workload import WorkItem

__all__ = ["huggingface"]


def huggingface(job: Job, model: str) -> None:
    """Only wanted tokens count: a batch runs until its longest output is done. Written after each batch."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(model)
    dtype = torch.float16 if job.device == "cuda" else torch.float32
    with torch.device(job.device):
        network: Any = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    network.eval()
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    work = the_mix(job, config.vocab_size)
    _run(job, network, work.items[:2], 2)
    rows: dict[str, object] = {}
    for batch, count in job.limits.huggingface:
        seconds, steps, useful, padded = 0.0, 0, 0, 0
        for first in range(0, count, batch):
            items = work.items[first : min(first + batch, count)]
            longest = max(item.output_len for item in items)
            seconds += _run(job, network, items, longest)
            steps += longest
            useful += sum(item.output_len for item in items)
            padded += longest * len(items)
            rows[str(batch)] = {
                "requests": first + len(items),
                "seconds": seconds,
                "useful_tok_per_s": useful / seconds,
                "padded_tok_per_s": padded / seconds,
                "ms_per_step": 1e3 * seconds / steps,
            }
            keep(job, "huggingface", {"dtype": str(dtype), "rows": rows})


def _run(job: Job, network: Any, items: tuple[WorkItem, ...], output_tokens: int) -> float:
    longest = max(len(item.prompt_ids) for item in items)
    padded = [[0] * (longest - len(item.prompt_ids)) + list(item.prompt_ids) for item in items]
    ids = torch.tensor(padded, device=job.device)
    lengths = torch.tensor([len(item.prompt_ids) for item in items], device=job.device)
    mask = torch.arange(longest, device=job.device) >= longest - lengths[:, None]
    began = time.perf_counter()
    made = network.generate(
        ids, attention_mask=mask.long(), max_new_tokens=output_tokens, do_sample=False
    )
    made.cpu()
    if made.shape[1] != longest + output_tokens:
        raise RuntimeError(
            f"{made.shape[1] - longest} tokens came where {output_tokens} were asked for"
        )
    return time.perf_counter() - began
