"""What pruning the KV of long prompts brings: decode steps with and without it, blocks held, the cost of pruning.

    python benchmarks/kv_prune.py --model smollm2 --lengths 2048 7168 --out benchmarks/<date>-<device>-kv-prune
    python benchmarks/kv_prune.py --shape llama-1b --lengths 8192 16384

Beside each ratio stands the most it could be if a step took as long as reading its weights and KV. Prompts are random,
so nothing here says what pruning costs in quality: `nonet bench quality` does, with the tasks passkey, longeval and
continuation on configurations that differ in `kv_prune`.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import StepPlan
from nonet.engine.engine import Engine
from nonet.engine.llm import LLM
from nonet.kv.compaction import CompactionRule
from shapes import SHAPES, write_shape

WARM_UP = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One length and batch; steps are medians."""

    length: int
    batch: int
    full_ms: float
    pruned_ms: float
    ratio: float
    bound: float  # of the ratio, by bytes read
    full_blocks: float  # held by each sequence
    pruned_blocks: float
    prefill_s: float  # of all sequences of the largest batch, whole
    prune_ms: float  # of one sequence


def main(given: Sequence[str] | None = None) -> None:
    arguments = _arguments(given)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.shape is not None:
            model = write_shape(Path(folder), arguments.shape)
        rows: list[Row] = []
        for length in arguments.lengths:
            rows += measure(arguments, model, length)
            _write(arguments, rows)
            # The engine before holds the memory that the next one asks for until its cycles are collected.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _write(arguments: argparse.Namespace, rows: list[Row]) -> None:
    if arguments.out is None:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
    record["torch"] = torch.__version__
    record["device_name"] = _device_name(arguments.device)
    name = arguments.shape or Path(arguments.model).stem
    target = arguments.out / f"{name}-{arguments.device}.json"
    target.write_text(
        json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
    )


def measure(arguments: argparse.Namespace, model: str, length: int) -> list[Row]:
    """One engine for both: without its rule nothing is pruned, and what the whole run computed is found again."""
    batches = sorted(_batches(arguments, length), reverse=True)
    longest = length + 2 * len(batches) * (arguments.steps + 2 * WARM_UP) + 2
    block_size = 64 if arguments.device == "cuda" else 16
    options: dict[str, object] = {
        "dummy_weights": arguments.shape is not None,
        "device": arguments.device,
        "dtype": "bfloat16",
        "kv_prune": arguments.pruner,
        "block_size": block_size,
        "max_model_len": longest,
        "max_num_seqs": batches[0],
        "num_blocks": batches[0] * (-(-longest // block_size) + 2) + 64,
        "threads": arguments.threads,
    }
    with LLM(model, **options) as llm:
        engine = llm.engine
        kv = engine.parts.scheduler._kv
        rule = kv.compaction
        assert rule is not None
        pruning = _Timer(engine)
        kv.compaction = None
        whole, prefill_s = _run(engine, arguments, length, batches)
        kv.compaction = rule
        pruned, _ = _run(engine, arguments, length, batches)
        page = llm.resolved.memory.kv_bytes_per_block * len(llm.resolved.groups)
        per_token, weights = page / block_size, llm.resolved.memory.weight_bytes
        if not llm.spec.tie_embeddings:  # only a row of the input table is read for each token
            weights -= 2 * llm.spec.vocab_size * llm.spec.hidden_size
    rows = []
    for batch in batches:
        bound = _bound(weights, per_token, batch, length, rule)
        full_ms, full_blocks = whole[batch]
        pruned_ms, pruned_blocks = pruned[batch]
        row = Row(length=length, batch=batch, full_ms=full_ms, pruned_ms=pruned_ms, ratio=full_ms / pruned_ms,
                  bound=bound, full_blocks=full_blocks, pruned_blocks=pruned_blocks, prefill_s=prefill_s,
                  prune_ms=1000 * statistics.median(pruning.seconds))  # fmt: skip
        print("  ".join(f"{k} {v:.4g}" for k, v in asdict(row).items()), flush=True)
        rows.append(row)
    return rows


def _run(
    engine: Engine, arguments: argparse.Namespace, length: int, batches: list[int]
) -> tuple[dict[int, tuple[float, float]], float]:
    """By batch, milliseconds of a decode step and blocks held by each sequence; and the seconds until all decode."""
    rng = random.Random(length)
    params = SamplingParams(temperature=0.0, max_tokens=100_000, ignore_eos=True)
    limit = engine.parts.scheduler.max_len - length
    names = [f"r{number}" for number in range(batches[0])]
    for name in names:
        prompt = [rng.randrange(10, 500) for _ in range(length)]
        engine.add(Request(request_id=name, prompt_ids=prompt, params=_limited(params, limit)))
    waiting = set(names)
    began = time.perf_counter()
    while waiting:
        waiting -= {delta.request_id for delta in engine.step()}
    prefill_s = time.perf_counter() - began
    found: dict[int, tuple[float, float]] = {}
    for batch in batches:
        engine.abort(names[batch:])
        for _ in range(WARM_UP):
            engine.step()
        seconds = []
        for _ in range(arguments.steps):
            began = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - began)
        stats = engine.stats()
        held = (stats.blocks_total - stats.blocks_free) / batch
        found[batch] = (1000 * statistics.median(seconds), held)
    engine.abort(names)
    while engine.has_work:
        engine.step()
    return found, prefill_s


def _limited(params: SamplingParams, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        temperature=params.temperature, max_tokens=max_tokens, ignore_eos=params.ignore_eos
    )


class _Timer:
    """Seconds of each pruning, until the device is done."""

    def __init__(self, engine: Engine) -> None:
        self.seconds: list[float] = []
        compactor = engine.parts.executor.runner._compactor
        assert compactor is not None
        compactor.run = self._timed(compactor.run)  # type: ignore[method-assign]

    def _timed(self, run: Callable[..., None]) -> Callable[..., None]:
        def timed(plan: StepPlan, *others: object) -> None:
            _wait()
            began = time.perf_counter()
            run(plan, *others)
            _wait()
            sequences = len({one.seq_id for one in plan.compactions})
            self.seconds += [(time.perf_counter() - began) / sequences] * sequences

        return timed


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _bound(
    weights: float, per_token: float, batch: int, length: int, rule: CompactionRule
) -> float:
    return (weights + batch * length * per_token) / (weights + batch * rule.length * per_token)


def _batches(arguments: argparse.Namespace, length: int) -> list[int]:
    """As many tokens in all as --most-tokens allows: the largest batch shrinks with the length."""
    fits = max(1, arguments.most_tokens // length)
    return sorted({min(batch, fits) for batch in arguments.batches})


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pruner", default="snapkv:budget=1024,window=32")
    parser.add_argument("--lengths", type=int, nargs="+", default=[7168])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--most-tokens", type=int, default=400_000, help="prompt tokens held at once"
    )
    parser.add_argument("--steps", type=int, default=32, help="decode steps timed for each batch")
    parser.add_argument("--threads", type=int, help="of the CPU kernels")
    parser.add_argument("--out", type=Path, help="folder for the record")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
