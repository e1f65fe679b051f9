"""The ladder of a model's shape with random weights on one GPU, in one call that fits in a few minutes.

    PYTHONPATH=src python benchmarks/gpu_ladder.py --out benchmarks/<date>-<device>-ladder
    PYTHONPATH=src python benchmarks/gpu_ladder.py --out DIR --budget-s 300 --rungs "FP8 weights"

Flags other than --shape and --out are those of `nonet ladder`. Both ends are measured first, so that a call whose time
ends has the whole factor; another call with the same folder measures what is missing.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from nonet.cli.main import run
from shapes import SHAPES, write_shape, write_tokenizer

PRESET = ["--dummy-weights", "--num-requests", "128", "--repeats", "2", "--rung-s", "8", "--latency-requests", "6",
          "--anchor-requests", "32", "--budget-s", "480", "--price", "2.5",
          "--max-ttft", "2", "--max-tpot", "0.05"]  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--out", type=Path, required=True)
    known, others = parser.parse_known_args(arguments)
    folder = known.out / "model" / known.shape
    write_shape(folder, known.shape, 1e-3)
    vocab_size = SHAPES[known.shape]["vocab_size"]
    assert isinstance(vocab_size, int)
    write_tokenizer(folder, vocab_size)
    name = ["--served-name", f"{known.shape} shape"]
    return run(["ladder", str(folder), *name, *PRESET, *others, "--out", str(known.out)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
