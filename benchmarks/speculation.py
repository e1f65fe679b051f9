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
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shapes import SHAPES
from speculation_parts.acceptance import Acceptance
from speculation_parts.compare import compare, run, summaries
from speculation_parts.engines import engines, greedy, one_engine, replace_params
from speculation_parts.prompts import QUESTIONS, read_prompts
from speculation_parts.replay import replay


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
    with engines(arguments, speculate=arguments.proposer) as (off, on):
        pairs = list(compare(arguments, off, on, read_prompts(arguments, off), greedy(arguments)))
    return {"summary": summaries(pairs), "pairs": [asdict(pair) for pair in pairs]}


def draft(arguments: argparse.Namespace) -> dict[str, Any]:
    speculate = f"draft_model:model={arguments.draft},tokens={arguments.tokens}"
    if arguments.draft_weight_format:
        speculate += f",weight_format={arguments.draft_weight_format}"
    found: dict[str, Any] = {}
    with engines(arguments, speculate=speculate) as (off, on):
        prompts = list(read_prompts(arguments, off))
        for temperature in arguments.temperatures:
            params = replace_params(greedy(arguments), temperature)
            with Acceptance.watched() as acceptance:
                pairs = list(compare(arguments, off, on, prompts, params))
            found[f"temperature {temperature:g}"] = {
                "summary": summaries(pairs),
                "acceptance": acceptance.summary() if temperature else None,
                "pairs": [asdict(pair) for pair in pairs],
            }
            print(f"temperature {temperature:g}", acceptance.summary() if temperature else "")
    return found


def trace(arguments: argparse.Namespace) -> dict[str, Any]:
    """Per prompt, how many of the drafts of each step stood, greedy, always --tokens of them."""
    speculate = f"draft_model:model={arguments.draft},tokens={arguments.tokens}"
    runs = []
    with one_engine(arguments, speculate=speculate, draft_length="fixed") as llm:
        for group, prompt in read_prompts(arguments, llm):
            answer = run(llm, prompt, greedy(arguments))
            accepted = answer.stood
            runs.append({"group": group, "accepted": accepted, "output": len(answer.token_ids)})
            mean = statistics.mean(accepted) if accepted else 0.0
            print(
                f"{group:10} {len(accepted):4} steps, {mean:.2f} of {arguments.tokens} drafts stood"
            )
    return {"tokens": arguments.tokens, "runs": runs}


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
    parser.add_argument("--data", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
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
