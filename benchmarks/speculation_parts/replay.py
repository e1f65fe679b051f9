"""The speed of a pair of shapes whose drafts stand as a trace of real text says."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nonet.speculate.base import NO_DRAFT, Context, Draft, Proposer
from speculation_parts.compare import compare, summaries
from speculation_parts.engines import engines, greedy, replace_params

__all__ = ["SHAPES", "replay"]

SHAPES = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
}  # fmt: skip
COMMON = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip


def replay(arguments: argparse.Namespace) -> dict[str, Any]:
    recorded = json.loads(arguments.trace.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for shape in (arguments.target_shape, arguments.draft_shape):
            (Path(folder) / shape).mkdir(exist_ok=True)
            (Path(folder) / shape / "config.json").write_text(
                json.dumps({**COMMON, **SHAPES[shape]})
            )
        arguments.model = str(Path(folder) / arguments.target_shape)
        small = Path(folder) / arguments.draft_shape
        speculate = f"draft_model:model={small},tokens={min(arguments.tokens, recorded['tokens'])}"
        with engines(arguments, speculate=speculate) as (off, on):
            runner = on.engine.parts.executor.runner
            assert runner._proposer is not None
            replayed = _Replayed(runner._proposer)
            runner._proposer = replayed
            pairs = []
            for runs in recorded["runs"][: arguments.prompts * len(arguments.data)]:
                rng = random.Random(len(pairs))
                prompt = [rng.randrange(1000, 100_000) for _ in range(arguments.prompt)]
                said = [rng.randrange(1000, 100_000) for _ in range(arguments.output)]
                replayed.begin(runs["accepted"], said, len(prompt))
                params = replace_params(greedy(arguments), 0.0, forced_ids=said)
                pairs += compare(arguments, off, on, [(runs["group"], prompt)], params)
    arguments.model = arguments.target_shape
    return {"trace": arguments.trace.name, "draft": arguments.draft_shape,
            "summary": summaries(pairs), "pairs": [asdict(pair) for pair in pairs]}  # fmt: skip


class _Replayed:
    """Asks the real proposer, which does its work, and hands on the right tokens as far as the trace says."""

    def __init__(self, inner: Proposer) -> None:
        self._inner = inner
        self._stood: list[int] = []
        self._said: list[int] = []
        self._num_prompt = self._at = 0

    def begin(self, stood: list[int], said: list[int], num_prompt: int) -> None:
        self._stood, self._said, self._num_prompt = stood or [0], said, num_prompt

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        drafts = self._inner.propose(contexts)
        return [self._as_traced(*one) for one in zip(contexts, drafts, strict=True)]

    def _as_traced(self, context: Context, draft: Draft) -> Draft:
        if not draft.token_ids:
            return NO_DRAFT
        done = len(context.token_ids) - self._num_prompt
        right = min(self._stood[self._at % len(self._stood)], len(draft.token_ids))
        self._at += 1
        ids = [*self._said[done : done + right], *[5] * len(draft.token_ids)]
        return replace(draft, token_ids=tuple(ids[: len(draft.token_ids)]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
