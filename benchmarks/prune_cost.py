"""What pruning one prompt's KV costs: milliseconds, and operations of torch, by layer.

    python benchmarks/prune_cost.py --out benchmarks/<date>-<device>-prune-cost
    python benchmarks/prune_cost.py --before ANOTHER_CHECKOUT/src --out DIR

Two shapes: attention of an 8B model with little else, and a small model of many layers, whose cost are operations more
than numbers. With `--before` two versions of the source run in turn, each in a process of its own, so that a ratio
compares what ran at the same time. A prompt is computed once and found in the prefix cache by those that are pruned.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.engine import Engine
from nonet.engine.llm import LLM
from record import write_record
from shapes import SHAPES

HERE = Path(__file__).resolve()


@dataclass(frozen=True, slots=True)
class Case:
    """A model whose attention has the sizes of a real one, its matrices do not: they are no part of this."""

    name: str
    length: int
    layers: int
    heads: int
    kv_heads: int
    dim: int

    def write(self, folder: Path) -> str:
        config = {
            **SHAPES["tiny"], "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.dim, "initializer_range": 0.3,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)


CASES = (
    Case("8b", length=16384, layers=2, heads=32, kv_heads=8, dim=128),
    Case("small", length=2048, layers=24, heads=14, kv_heads=2, dim=64),
)


@dataclass(frozen=True, slots=True)
class Figures:
    case: str
    kernels: str
    layers: int
    ms: list[float]  # of each prompt
    operations: int  # of torch that compute or copy, for one prompt
    views: int  # of torch that only look at a tensor in another way

    @property
    def summary(self) -> str:
        ms = statistics.median(self.ms)
        return (
            f"{self.case} {self.kernels}: {ms:.1f} ms a prompt, {ms / self.layers:.2f} a layer, "
            f"{self.operations / self.layers:.1f} operations a layer"
        )


def main(given: Sequence[str] | None = None) -> None:
    arguments = _arguments(given)
    if arguments.child:
        print(json.dumps([asdict(one) for one in measure_all(arguments)]))
        return
    sources = {"now": HERE.parents[1] / "src"}
    if arguments.before is not None:
        sources = {"before": arguments.before, **sources}
    found: dict[str, list[Figures]] = {name: [] for name in sources}
    for _ in range(arguments.turns):
        for name, source in sources.items():
            found[name] += in_its_own_process(source, arguments)
            for one in found[name][-len(CASES) :]:
                print(f"{name:7}{one.summary}", flush=True)
    by_case = {name: _joined(some) for name, some in found.items()}
    for before, now in zip(by_case.get("before", []), by_case["now"], strict=False):
        ratio = statistics.median(before.ms) / statistics.median(now.ms)
        print(f"{now.case}: {ratio:.2f} times as fast, {before.operations} operations to {now.operations}")  # fmt: skip
    if arguments.out is not None:
        figures = {name: [asdict(one) for one in some] for name, some in by_case.items()}
        write_record(arguments.out / "prune-cost.json", arguments.commit, **figures)


def in_its_own_process(source: Path, arguments: argparse.Namespace) -> list[Figures]:
    command = [sys.executable, str(HERE), "--child", "--repeats", str(arguments.repeats)]
    command += ["--kernels", arguments.kernels, "--device", arguments.device]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [Figures(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def measure_all(arguments: argparse.Namespace) -> list[Figures]:
    with tempfile.TemporaryDirectory() as folder:
        return [measure(case, case.write(Path(folder)), arguments) for case in CASES]


def measure(case: Case, model: str, arguments: argparse.Namespace) -> Figures:
    block_size = 64 if arguments.device == "cuda" else 16
    options: dict[str, Any] = {
        "dummy_weights": True, "device": arguments.device, "dtype": "bfloat16", "kernels": arguments.kernels,
        "kv_prune": "snapkv:budget=1024,window=32", "block_size": block_size, "max_model_len": case.length + 64,
        "max_num_seqs": 1, "num_blocks": 2 * (case.length // block_size + 128),
    }  # fmt: skip
    with LLM(model, **options) as llm:
        kv = llm.engine.parts.scheduler._kv
        rule, kv.compaction = kv.compaction, None
        serve(llm.engine, case.length)
        kv.compaction = rule
        watch = Watch(llm.engine)
        for _ in range(arguments.repeats + 2):
            serve(llm.engine, case.length)
        watch.counting = Counting()
        serve(llm.engine, case.length)
        counts = watch.counting
        kernels = llm.resolved.kernels
    return Figures(case.name, kernels, case.layers, watch.ms[2:-1], counts.operations, counts.views)


def serve(engine: Engine, length: int) -> None:
    rng = random.Random(length)
    prompt = [rng.randrange(10, 500) for _ in range(length)]
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    engine.add(Request(request_id="one", prompt_ids=prompt, params=params))
    while engine.has_work:
        engine.step()


class Counting(TorchDispatchMode):
    """Operations as they reach the device; reserving memory is none."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.views = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func.is_view or "_unsafe_view" in str(func) or "_reshape_alias" in str(func):
            self.views += 1
        elif "empty" not in str(func):
            self.operations += 1
        return func(*args, **(kwargs or {}))


class Watch:
    """Times each pruning until the device is done, or counts its operations."""

    def __init__(self, engine: Engine) -> None:
        self.ms: list[float] = []
        self.counting: Counting | None = None
        compactor = engine.parts.executor.runner._compactor
        assert compactor is not None
        compactor.run = self._watched(compactor.run)  # type: ignore[method-assign]

    def _watched(self, run: Callable[..., None]) -> Callable[..., None]:
        def watched(*given: object) -> None:
            _wait()
            began = time.perf_counter()
            if self.counting is None:
                run(*given)
            else:
                with self.counting:
                    run(*given)
            _wait()
            self.ms.append(1000 * (time.perf_counter() - began))

        return watched


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _joined(some: list[Figures]) -> list[Figures]:
    """The times of all turns, by case."""
    joined: dict[str, Figures] = {}
    for one in some:
        if one.case in joined:
            joined[one.case].ms.extend(one.ms)
        else:
            joined[one.case] = one
    return list(joined.values())


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="src folder of the version to compare with")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the record")
    parser.add_argument("--commit", help="what ran, where there is no git to ask")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
