"""Batch-1 decode beside llama.cpp, in turn, so that a machine whose speed drifts does not decide.

python benchmarks/paired_batch_one.py --llama-bench PATH --gguf FILE [--weight-format native] --rounds 6
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import time
from pathlib import Path

from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weight-format", default="dense")
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True, help="what llama.cpp runs")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pairs: list[tuple[float, float]] = []
    options = {"weight_format": arguments.weight_format, "max_model_len": 512, "num_blocks": 64}
    with LLM(arguments.model, prefix_cache=False, **options) as llm:
        _ours(llm)
        for _ in range(arguments.rounds):
            pairs.append((_ours(llm), _theirs(arguments)))
            print(
                f"nonet {pairs[-1][0]:6.1f}  llama.cpp {pairs[-1][1]:6.1f}  ratio {pairs[-1][0] / pairs[-1][1]:.2f}"
            )
    ratios = [ours / theirs for ours, theirs in pairs]
    summary = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    print("ratio", {name: round(value, 3) for name, value in summary.items()})
    if arguments.out is not None:
        record = {
            "weights": arguments.weight_format,
            "llama_cpp": arguments.gguf.name,
            "ratio": summary,
            "pairs": pairs,
        }
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


def _ours(llm: LLM) -> float:
    """Tokens per second after the first, 128 of them, from an empty context but for 16 tokens."""
    prompt = [random.randrange(1000, 40000) for _ in range(16)]
    times = []
    for tokens in (1, 129):
        began = time.perf_counter()
        llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True))
        times.append(time.perf_counter() - began)
    return 128 / (times[1] - times[0])


def _theirs(arguments: argparse.Namespace) -> float:
    command = [
        arguments.llama_bench,
        "-m",
        arguments.gguf,
        "-p",
        "0",
        "-n",
        "128",
        "-r",
        "1",
        "-o",
        "json",
    ]
    run = subprocess.run(
        [*command, "-t", str(arguments.threads)], capture_output=True, text=True, check=True
    )
    return float(json.loads(run.stdout)[0]["avg_ts"])


if __name__ == "__main__":
    main()
