"""What each weight format costs in quality: KL, top-1 agreement and perplexity against bfloat16, on wikitext-2.

    NONET_DATA=... python benchmarks/weight_formats.py --model smollm2 --out benchmarks/<date>-<device>-weight-formats

Teacher-forced over non-overlapping windows; the reference is the same file's weights in bfloat16 by the same kernels.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nonet.bench.workload import data_folder
from nonet.engine.scorer import Scorer
from nonet.text.tokenizer import load_tokenizer
from nonet.weights.packaged import resolve_model

FORMATS = ["dense", "native", "int8", "int4"]


@dataclass(frozen=True)
class Quality:
    """Means over all scored tokens; `kl` in nats, of the row's distribution from the reference's."""

    weights: str
    tokens: int
    perplexity: float
    kl: float
    kl_p99: float
    top1_agreement: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window", type=int, default=256, help="tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for <model>.json")
    arguments = parser.parse_args()
    path = resolve_model(arguments.model)
    windows = _windows(path, arguments.windows, arguments.window)
    reference = _logits(path, "dense", windows, arguments.threads)
    rows = [
        _compare(weights, windows, reference, _logits(path, weights, windows, arguments.threads))
        for weights in FORMATS
    ]
    print(f"{'weights':8} {'perplexity':>10} {'KL':>9} {'KL p99':>9} {'top-1':>7}")
    for row in rows:
        print(
            f"{row.weights:8} {row.perplexity:10.3f} {row.kl:9.5f} {row.kl_p99:9.5f} {row.top1_agreement:7.3%}"
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = Path(arguments.model).stem
        record = {
            "model": path.name,
            "window": arguments.window,
            "text": "wikitext2 valid",
            "dtype": "bfloat16",
        }
        record["rows"] = [asdict(row) for row in rows]
        (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def _windows(path: Path, count: int, size: int) -> list[list[int]]:
    text = (data_folder(os.environ) / "wikitext2" / "valid.txt").read_text()
    ids = load_tokenizer(path).encode(text[: count * size * 12], add_special=False)
    return [ids[at * size : (at + 1) * size] for at in range(count)]


def _logits(path: Path, weights: str, windows: list[list[int]], threads: int) -> list[torch.Tensor]:
    scorer = Scorer(
        path,
        kernels="native",
        dtype="bfloat16",
        weight_format=weights,
        threads=threads,
        max_tokens=len(windows[0]),
    )
    return [scorer.logits(window).log_softmax(-1) for window in windows]


def _compare(
    weights: str, windows: list[list[int]], reference: list[torch.Tensor], other: list[torch.Tensor]
) -> Quality:
    divergences, agreements, losses = [], [], []
    for window, expected, found in zip(windows, reference, other, strict=True):
        divergences.append((expected.exp() * (expected - found)).sum(-1))
        agreements.append((expected.argmax(-1) == found.argmax(-1)).float())
        losses.append(-found[:-1].gather(1, torch.tensor(window[1:]).unsqueeze(1)).squeeze(1))
    kl = torch.cat(divergences)
    return Quality(
        weights=weights,
        tokens=len(kl),
        perplexity=math.exp(torch.cat(losses).mean().item()),
        kl=kl.mean().item(),
        kl_p99=kl.quantile(0.99).item(),
        top1_agreement=torch.cat(agreements).mean().item(),
    )


if __name__ == "__main__":
    main()
