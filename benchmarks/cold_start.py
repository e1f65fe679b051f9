"""Seconds from the start of a process to its first token, with an empty kernel cache and with the one that it left.

    python benchmarks/cold_start.py --shape llama-8b --device cuda --out benchmarks/<date>-<device>-cold-start

Weights are made up, so no disk is measured. Every start is a process of its own; its phases are the imports, loading
(weights, KV cache, kernels' memory), and the first request: one prompt, one token.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write_record
from shapes import SHAPES, write_shape

CHILD = """
import json, sys, time
options = json.loads(sys.argv[1])
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
marks = {"imports": time.time()}
with LLM(**options["engine"]) as llm:
    marks["loading"] = time.time()
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    llm.generate([list(range(5, 5 + options["prompt"]))], params)
    marks["first request"] = time.time()
    llm.generate([list(range(9, 9 + options["prompt"]))], params)
    marks["second request"] = time.time()
print(json.dumps(marks))
"""


def main() -> None:
    arguments = _parse()
    rows = []
    for weights in arguments.weights.split(","):
        with tempfile.TemporaryDirectory() as folder:
            model = write_shape(Path(folder) / "model", arguments.shape, 1e-3)
            caches = Path(folder) / "kernels"
            for kernels in ("none", "warm", "warm"):
                rows.append(
                    {
                        "weights": weights,
                        "kernel cache": kernels,
                        **_start(arguments, model, weights, caches),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    if arguments.out is not None:
        write_record(arguments.out / "results.json", arguments.commit, rows=rows)


def _start(
    arguments: argparse.Namespace, model: str, weights: str, caches: Path
) -> dict[str, float]:
    """Seconds by phase; the whole is up to the end of the first request."""
    engine = {
        "model": model,
        "dummy_weights": True,
        "device": arguments.device,
        "weight_format": weights,
        "max_model_len": arguments.context,
    }
    given = json.dumps({"engine": engine, "prompt": arguments.prompt})
    environment = {**os.environ, "TRITON_CACHE_DIR": str(caches)}
    began = time.time()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, given],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    marks = json.loads(child.stdout.splitlines()[-1])
    names, times = list(marks), [began, *marks.values()]
    phases = {
        name: round(after - before, 3)
        for name, before, after in zip(names, times, times[1:], strict=False)
    }
    return {"first token": round(marks["first request"] - began, 3), **phases}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--weights", default="dense,fp8", help="weight formats, with commas")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the first prompt")
    parser.add_argument("--commit", help="what runs, where there is no git to ask")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
