"""What speculation brings at batch 1: seconds of decoding with it and without, in turn, on the same prompts.

    NONET_DATA=... python benchmarks/speculation.py lookup --model smollm2 --out benchmarks/<date>-<device>-speculation
    NONET_DATA=... python benchmarks/speculation.py draft --model BIG --draft SMALL --out ...
    NONET_DATA=... python benchmarks/speculation.py trace --model BIG --draft SMALL --out ...
    python benchmarks/speculation.py replay --trace FILE --device cuda --out ...

`lookup` takes edits of code (edit_eval), questions about meetings that are answered in the meeting's own words (qmsum)
and chat (mt_bench). `draft` adds how often drafts stood, beside the sum over the vocabulary of min(p, q) at the very
positions where drafts were verified, which is what theory says (arXiv 2211.17192). Time counts from the first token;
greedy answers are compared token for token. `trace` records how many of a fixed number of drafts stood in each step of
real text. `replay` times an 8B target and a 0.5B draft, both of made-up weights, whose drafts stand as the trace says:
the speed of the pair if its guesses were as good as those of the real pair.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nonet.bench.workload import data_folder
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.engine.prepare import PromptReader
from nonet.sampling import sampler
from nonet.sampling.acceptance.rejection import accept
from nonet.speculate.base import NO_DRAFT, Context, Draft, Proposer

DATA = ("edit_eval", "qmsum", "mt_bench")
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


@dataclass(frozen=True, slots=True)
class Answer:
    """One run of one prompt. `seconds` are those after the first token."""

    token_ids: list[int]
    seconds: float
    steps: int
    drafted: int
    accepted: int


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


def main(given: Sequence[str] | None = None) -> None:
    arguments = _arguments(given)
    rows = {"lookup": lookup, "draft": draft, "trace": trace, "replay": replay}[arguments.what](
        arguments
    )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"{arguments.what}-{Path(arguments.model).name}-{arguments.device}{arguments.suffix}.json"
        target = arguments.out / name
        target.write_text(json.dumps({**_facts(arguments), **rows}, indent=1) + "\n")


def lookup(arguments: argparse.Namespace) -> dict[str, Any]:
    with _engines(arguments, speculate=arguments.proposer) as (off, on):
        pairs = list(compare(arguments, off, on, _prompts(arguments, off), _greedy(arguments)))
    return {"summary": _summaries(pairs), "pairs": [asdict(pair) for pair in pairs]}


def draft(arguments: argparse.Namespace) -> dict[str, Any]:
    speculate = f"draft_model:model={arguments.draft},tokens={arguments.tokens}"
    if arguments.draft_weight_format:
        speculate += f",weight_format={arguments.draft_weight_format}"
    found: dict[str, Any] = {}
    with _engines(arguments, speculate=speculate) as (off, on):
        prompts = list(_prompts(arguments, off))
        for temperature in arguments.temperatures:
            params = replace_params(_greedy(arguments), temperature)
            with _Acceptance.watched() as acceptance:
                pairs = list(compare(arguments, off, on, prompts, params))
            found[f"temperature {temperature:g}"] = {
                "summary": _summaries(pairs),
                "acceptance": acceptance.summary() if temperature else None,
                "pairs": [asdict(pair) for pair in pairs],
            }
            print(f"temperature {temperature:g}", acceptance.summary() if temperature else "")
    return found


def trace(arguments: argparse.Namespace) -> dict[str, Any]:
    """Per prompt, how many of the drafts of each step stood, greedy, always --tokens of them."""
    speculate = f"draft_model:model={arguments.draft},tokens={arguments.tokens}"
    runs = []
    with _llm(arguments, speculate=speculate, draft_length="fixed") as llm:
        for group, prompt in _prompts(arguments, llm):
            answer = run(llm, prompt, _greedy(arguments))
            accepted: list[int] = _STOOD[:]
            runs.append({"group": group, "accepted": accepted, "output": len(answer.token_ids)})
            mean = statistics.mean(accepted) if accepted else 0.0
            print(
                f"{group:10} {len(accepted):4} steps, {mean:.2f} of {arguments.tokens} drafts stood"
            )
    return {"tokens": arguments.tokens, "runs": runs}


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
        with _engines(arguments, speculate=speculate) as (off, on):
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
                params = replace_params(_greedy(arguments), 0.0, forced_ids=said)
                pairs += compare(arguments, off, on, [(runs["group"], prompt)], params)
    arguments.model = arguments.target_shape
    return {"trace": arguments.trace.name, "draft": arguments.draft_shape,
            "summary": _summaries(pairs), "pairs": [asdict(pair) for pair in pairs]}  # fmt: skip


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


_STOOD: list[int] = []  # of the run that ended last: drafts that stood in each step with drafts


def run(llm: LLM, prompt: list[int], params: SamplingParams) -> Answer:
    engine = llm.engine
    _STOOD.clear()
    engine.add(Request(request_id="r", prompt_ids=prompt, params=params, eos_ids=llm.spec.eos_ids))
    token_ids: list[int] = []
    began, steps, before = 0.0, 0, engine.stats()
    while engine.has_work:
        mine = engine.stats()
        deltas = engine.step()
        after = engine.stats()
        if after.num_drafts > mine.num_drafts:
            _STOOD.append(after.num_accepted_tokens - mine.num_accepted_tokens)
        token_ids += [token for delta in deltas for token in delta.token_ids]
        if not began:
            began = time.perf_counter() if token_ids else 0.0
        else:
            steps += 1
    seconds = time.perf_counter() - began
    drafted = after.num_draft_tokens - before.num_draft_tokens
    return Answer(
        token_ids, seconds, steps, drafted, after.num_accepted_tokens - before.num_accepted_tokens
    )


class _Acceptance:
    """Watches the rejection rule: for each draft that was reached, whether it stood and the chance that it had."""

    def __init__(self) -> None:
        self.chances: list[float] = []
        self.stood: list[bool] = []

    @classmethod
    @contextmanager
    def watched(cls) -> Iterator[_Acceptance]:
        found = cls()
        sampler.accept = found  # type: ignore[assignment]
        try:
            yield found
        finally:
            sampler.accept = accept

    def __call__(
        self,
        target: torch.Tensor,
        draft: torch.Tensor,
        draft_ids: torch.Tensor,
        *uniforms: torch.Tensor,
    ) -> torch.Tensor:
        chosen = accept(target, draft, draft_ids, *uniforms)
        chances = torch.minimum(target, draft).double().sum(-1).tolist()
        for chance, is_right in zip(chances, (chosen == draft_ids).tolist(), strict=True):
            self.chances.append(chance)
            self.stood.append(is_right)
            if not is_right:
                break  # later drafts of the run are thrown away
        return chosen

    def summary(self) -> dict[str, float]:
        if not self.chances:
            return {"verified": 0}
        spread = math.sqrt(sum(one * (1 - one) for one in self.chances))
        expected, stood = sum(self.chances), sum(self.stood)
        return {
            "verified": len(self.chances),
            "acceptance": round(stood / len(self.chances), 4),
            "sum_of_min": round(expected / len(self.chances), 4),
            "standard_deviations_apart": round((stood - expected) / spread, 2) if spread else 0.0,
        }


def _summaries(pairs: list[Pair]) -> list[dict[str, Any]]:
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


def _prompts(arguments: argparse.Namespace, llm: LLM) -> Iterator[tuple[str, list[int]]]:
    reader = PromptReader(Path(llm.resolved.model_path))
    for name in arguments.data:
        questions = list(QUESTIONS[name](arguments))
        random.Random(arguments.seed).shuffle(questions)
        for question in questions[: arguments.prompts]:
            yield name, reader.chat_ids([{"role": "user", "content": question}])


def _edits(arguments: argparse.Namespace) -> Iterator[str]:
    for row in _lines("edit_eval/edit_eval.jsonl"):
        if len(row["input"]) >= 200:
            task = f"{row['instruction']}\nWrite the whole code again with this change."
            yield f"{task}\n\n```python\n{row['input']}\n```"


def _meetings(arguments: argparse.Namespace) -> Iterator[str]:
    """The part of a meeting that a question is about, up to --words of it."""
    for row in _lines("qmsum/val.jsonl"):
        for asked in row["specific_query_list"][:2]:
            first, last = (int(place) for place in asked["relevant_text_span"][0])
            turns = row["meeting_transcripts"][first : last + 1]
            text = "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in turns)
            words = text.split(" ")[: arguments.words]
            if len(words) >= arguments.words // 2:
                question = f"Answer with what the speakers said, word for word: {asked['query']}"
                yield f"{' '.join(words)}\n\n{question}"


def _chats(arguments: argparse.Namespace) -> Iterator[str]:
    return (row["turns"][0] for row in _lines("mt_bench/question.jsonl"))


QUESTIONS = {"edit_eval": _edits, "qmsum": _meetings, "mt_bench": _chats}


def _lines(name: str) -> Iterator[Mapping[str, Any]]:
    folder, _, _ = name.partition("/")
    with open(data_folder(os.environ, folder) / name, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _greedy(arguments: argparse.Namespace) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=arguments.output, seed=arguments.seed)


def replace_params(params: SamplingParams, temperature: float, **fields: Any) -> SamplingParams:
    ignores_end = bool(fields)
    return SamplingParams(temperature=temperature, max_tokens=params.max_tokens, seed=params.seed,
                          ignore_eos=ignores_end, **fields)  # fmt: skip


@contextmanager
def _engines(arguments: argparse.Namespace, **speculation: str) -> Iterator[tuple[LLM, LLM]]:
    """One without speculation and one with it, side by side, warm."""
    with ExitStack() as stack:
        off = stack.enter_context(_llm(arguments))
        on = stack.enter_context(
            _llm(arguments, draft_length=arguments.draft_length, **speculation)
        )
        for llm in (off, on):
            run(llm, list(range(1000, 1064)), replace_params(_greedy(arguments), 0.0))
        yield off, on


def _llm(arguments: argparse.Namespace, **more: str) -> LLM:
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


def _facts(arguments: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )  # fmt: skip
    kept = ("what", "model", "draft", "tokens", "weight_format", "draft_weight_format", "proposer", "output",
            "words", "seed", "rounds", "device", "threads")  # fmt: skip
    return {
        "command": ["benchmarks/speculation.py", *sys.argv[1:]],
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "device_name": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "options": {name: getattr(arguments, name) for name in kept},
    }


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["lookup", "draft", "trace", "replay"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", default="", help="the draft model")
    parser.add_argument("--tokens", type=int, default=6, help="most tokens drafted at a time")
    parser.add_argument("--weight-format", help="of the target")
    parser.add_argument("--draft-weight-format")
    parser.add_argument("--proposer", default="prompt_lookup", help="for lookup")
    parser.add_argument("--draft-length", default="adaptive", help="or fixed")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--prompts", type=int, default=8, help="of each data set")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a replayed prompt")
    parser.add_argument("--output", type=int, default=192, help="most tokens of an answer")
    parser.add_argument("--words", type=int, default=800, help="of a meeting")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240.0, help="for all data sets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", type=Path, help="what `trace` wrote, for replay")
    parser.add_argument("--target-shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--draft-shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--longest", type=int, default=4096, help="most tokens of a sequence")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--suffix", default="", help="of the result's name")
    parser.add_argument("--out", type=Path, help="folder for the results")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
