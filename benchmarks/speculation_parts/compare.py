"""The same prompts with speculation and without, in turn, and what comes of it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM

__all__ = ["Answer", "Pair", "compare", "run", "summaries"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One run of one prompt. `seconds` are those after the first token; `stood` is of each step that had drafts."""

    token_ids: list[int]
    seconds: float
    steps: int
    drafted: int
    accepted: int
    stood: list[int]


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt without speculation and with it; medians of the rounds."""

    group: str
    prompt: int
    output: int
    off_s: float
    on_s: float
    is_equal: bool  # token for token, where both are greedy
    steps: int  # with speculation, after the first token
    drafted: int
    accepted: int


def compare(
    arguments: argparse.Namespace,
    off: LLM,
    on: LLM,
    prompts: Sequence[tuple[str, list[int]]] | Iterator[tuple[str, list[int]]],
    params: SamplingParams,
) -> Iterator[Pair]:
    """Each prompt, in each round, first by one engine and then by the other; who is first changes.

    A group whose share of --seconds is used up is left.
    """
    used: dict[str, float] = {}
    for number, (group, prompt) in enumerate(prompts):
        if used.get(group, 0.0) > arguments.seconds / len(arguments.data):
            continue
        began = time.perf_counter()
        runs: dict[bool, list[Answer]] = {False: [], True: []}
        for turn in range(arguments.rounds):
            order = (False, True) if (number + turn) % 2 else (True, False)
            for is_on in order:
                runs[is_on].append(run(on if is_on else off, prompt, params))
        used[group] = used.get(group, 0.0) + time.perf_counter() - began
        fast = runs[True][-1]
        pair = Pair(
            group=group,
            prompt=len(prompt),
            output=len(fast.token_ids),
            off_s=_per_token(runs[False]) * (len(fast.token_ids) - 1),
            on_s=_per_token(runs[True]) * (len(fast.token_ids) - 1),
            is_equal=fast.token_ids == runs[False][-1].token_ids,
            steps=fast.steps,
            drafted=fast.drafted,
            accepted=fast.accepted,
        )
        if pair.output > 1:
            print("  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in asdict(pair).items()), flush=True)  # fmt: skip
            yield pair


def _per_token(answers: list[Answer]) -> float:
    """Answers of random sampling differ in length between the two engines, so tokens are what is compared."""
    return statistics.median(one.seconds / max(1, len(one.token_ids) - 1) for one in answers)


def run(llm: LLM, prompt: list[int], params: SamplingParams) -> Answer:
    engine = llm.engine
    engine.add(Request(request_id="r", prompt_ids=prompt, params=params, eos_ids=llm.spec.eos_ids))
    token_ids: list[int] = []
    stood: list[int] = []
    began, steps, before = 0.0, 0, engine.stats()
    while engine.has_work:
        mine = engine.stats()
        deltas = engine.step()
        after = engine.stats()
        if after.num_drafts > mine.num_drafts:
            stood.append(after.num_accepted_tokens - mine.num_accepted_tokens)
        token_ids += [token for delta in deltas for token in delta.token_ids]
        if not began:
            began = time.perf_counter() if token_ids else 0.0
        else:
            steps += 1
    seconds = time.perf_counter() - began
    drafted = after.num_draft_tokens - before.num_draft_tokens
    accepted = after.num_accepted_tokens - before.num_accepted_tokens
    return Answer(token_ids, seconds, steps, drafted, accepted, stood)


def summaries(pairs: list[Pair]) -> list[dict[str, Any]]:
    found = []
    for group in [*dict.fromkeys(pair.group for pair in pairs), "all"]:
        rows = [pair for pair in pairs if group in (pair.group, "all")]
        ratios = sorted(pair.off_s / pair.on_s for pair in rows)
        tokens, steps = sum(pair.output - 1 for pair in rows), sum(pair.steps for pair in rows)
        drafted = sum(pair.drafted for pair in rows)
        row = {
            "group": group,
            "prompts": len(rows),
            "ratio_of_time": round(sum(p.off_s for p in rows) / sum(p.on_s for p in rows), 3),
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_least": round(ratios[0], 3),
            "ratio_most": round(ratios[-1], 3),
            "tokens_per_step": round(tokens / max(1, steps), 2),
            "acceptance": round(sum(p.accepted for p in rows) / drafted, 3) if drafted else None,
            "equal": sum(pair.is_equal for pair in rows),
            "off_tokens_per_s": round(tokens / sum(p.off_s for p in rows), 1),
        }
        found.append(row)
        print(json.dumps(row))
    return found
