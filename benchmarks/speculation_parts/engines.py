"""Two engines side by side, one of them with speculation, and how they are asked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from speculation_parts.compare import run

__all__ = ["engines", "greedy", "one_engine", "replace_params"]


def greedy(arguments: argparse.Namespace) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=arguments.output, seed=arguments.seed)


def replace_params(params: SamplingParams, temperature: float, **fields: Any) -> SamplingParams:
    ignores_end = bool(fields)
    return SamplingParams(temperature=temperature, max_tokens=params.max_tokens, seed=params.seed,
                          ignore_eos=ignores_end, **fields)  # fmt: skip


@contextmanager
def engines(arguments: argparse.Namespace, **speculation: str) -> Iterator[tuple[LLM, LLM]]:
    """One without speculation and one with it, side by side, warm."""
    with ExitStack() as stack:
        off = stack.enter_context(one_engine(arguments))
        on = stack.enter_context(
            one_engine(arguments, draft_length=arguments.draft_length, **speculation)
        )
        for llm in (off, on):
            run(llm, list(range(1000, 1064)), replace_params(greedy(arguments), 0.0))
        yield off, on


def one_engine(arguments: argparse.Namespace, **more: str) -> LLM:
    options: dict[str, object] = {
        "dummy_weights": arguments.what == "replay",
        "device": arguments.device,
        "weight_format": arguments.weight_format,
        "dtype": "bfloat16",
        "max_model_len": arguments.longest,
        "max_num_seqs": 1,
        "num_blocks": 2 * arguments.longest // 16,
        "prefix_cache": False,
        "threads": arguments.threads,
    }
    return LLM(
        arguments.model,
        **{key: value for key, value in options.items() if value is not None},
        **more,
    )
