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
from shapes import write_shape
from speculation_parts.compare import compare, summaries
from speculation_parts.engines import engines, greedy, replace_params

__all__ = ["replay"]


def replay(arguments: argparse.Namespace) -> dict[str, Any]:
    recorded = json.loads(arguments.trace.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for shape in (arguments.target_shape, arguments.draft_shape):
            write_shape(Path(folder) / shape, shape)
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
