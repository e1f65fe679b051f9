"""What KV formats bring: tokens that fit, decode steps at long contexts, and beside each row what they cost in quality.

    NONET_DATA=... python benchmarks/kv_format.py --model smollm2 --out benchmarks/<date>-<device>-kv-format
    NONET_DATA=... python benchmarks/kv_format.py --shape llama-1b --contexts 1024 4096 8192 16384

Steps of all formats are taken in turn on one copy of the weights, on caches of random entries: the time of a step does
not depend on what they hold. `bound` is the ratio if a step took as long as reading its weights and KV. Quality is that
of `--quality-model` on wikitext-2, teacher-forced through a cache of the format, against the model's own dtype.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nonet.bench.workload import data_folder
from nonet.config.groups import cache_groups
from nonet.config.load import from_options
from nonet.config.memory import kv_bytes_per_block
from nonet.core.model_spec import ModelSpec
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import BlockTableUpdate, NewSequence, Row
from nonet.engine.assemble import load_model, make_ops
from nonet.engine.prepare import resolve_config
from nonet.engine.scorer import Scorer
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.native.recording import NativeRecording, time_program
from nonet.kernels.ops import LayerCache, Ops, StepShape
from nonet.kv.format import KV_FORMATS
from nonet.kv.storage import KVStorage
from nonet.models.decoder import Decoder
from nonet.runner.batch import StepBuffers
from nonet.runner.sequences import SequenceTable
from nonet.text.tokenizer import load_tokenizer
from nonet.weights.dummy import DummySource
from nonet.weights.open import open_weights
from nonet.weights.packaged import resolve_model
from nonet.weights.spec import read_spec
from shapes import SHAPES, write_shape

PLAIN = "auto"


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over all scored tokens; `kl` in nats, of the format's distribution from the plain cache's."""

    tokens: int
    perplexity: float
    kl: float
    kl_p99: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class Step:
    """Decode steps of one context, batch and format: medians, and ratios to the plain cache's (above 1 is faster)."""

    context: int
    batch: int
    kv_format: str
    step_ms: float
    attention_ms: float | None
    ratio: float
    attention_ratio: float | None
    bound: float
    perplexity: float
    kl: float


def main(given: Sequence[str] | None = None) -> None:
    arguments = _arguments(given)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if arguments.shape is None:
            path = resolve_model(arguments.model)
        else:
            write_shape(path, arguments.shape)
        quality = measure_quality(arguments)
        fit = measure_fit(arguments, path)
        steps = list(measure_steps(arguments, path, quality))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        record = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
        record["torch"] = torch.__version__
        rows = {
            "quality": {name: asdict(one) for name, one in quality.items()},
            "fit": fit,
            "steps": [asdict(step) for step in steps],
        }
        name = arguments.shape or Path(arguments.model).stem
        target = arguments.out / f"{name}-{arguments.device}.json"
        target.write_text(json.dumps({**record, **rows}, indent=2) + "\n")


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shape", choices=SHAPES, help="made-up weights of this shape instead")
    parser.add_argument("--formats", nargs="+", default=[PLAIN, "int8", "fp8"])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 8000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of each format in a round")
    parser.add_argument("--memory-gib", type=float, default=1.0, help="for the tokens that fit")
    parser.add_argument("--quality-model", default="smollm2")
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--window", type=int, default=1024, help="tokens")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for <model>-<device>.json")
    arguments = parser.parse_args(given)
    if arguments.formats[0] != PLAIN:
        parser.error(f"the first of --formats is what the others are compared with: {PLAIN}")
    return arguments


def measure_quality(arguments: argparse.Namespace) -> dict[str, Quality]:
    path = resolve_model(arguments.quality_model)
    scorers = {
        name: Scorer(
            path,
            kernels="native",
            dtype="bfloat16",
            kv_format=None if name == PLAIN else name,
            threads=arguments.threads,
            max_tokens=arguments.window,
        )
        for name in arguments.formats
    }
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {
        name: [] for name in scorers
    }
    for window in _windows(path, arguments.windows, arguments.window):
        reference = None
        targets = torch.tensor(window[1:]).unsqueeze(1)
        for name, scorer in scorers.items():
            log_probs = scorer.logits(window).log_softmax(-1)
            reference = log_probs if reference is None else reference
            kl = (reference.exp() * (reference - log_probs)).sum(-1)
            agrees = (reference.argmax(-1) == log_probs.argmax(-1)).float()
            found[name].append((kl, agrees, -log_probs[:-1].gather(1, targets).squeeze(1)))
    print(f"{arguments.quality_model}: {'format':8} perplexity        KL    KL p99   top-1")
    result = {}
    for name, windows in found.items():
        kl, agrees, losses = (torch.cat(parts) for parts in zip(*windows, strict=True))
        one = Quality(
            tokens=len(kl),
            perplexity=math.exp(losses.mean().item()),
            kl=kl.mean().item(),
            kl_p99=kl.quantile(0.99).item(),
            top1_agreement=agrees.mean().item(),
        )
        result[name] = one
        print(
            f"         {name:8} {one.perplexity:10.4f} {one.kl:9.6f} {one.kl_p99:9.6f} {one.top1_agreement:7.3%}"
        )
    return result


def _windows(path: Path, count: int, size: int) -> list[list[int]]:
    text = (data_folder(os.environ, "wikitext2") / "wikitext2" / "valid.txt").read_text()
    ids = load_tokenizer(path).encode(text[: count * size * 12], add_special=False)
    return [ids[at * size : (at + 1) * size] for at in range(count)]


def measure_fit(arguments: argparse.Namespace, path: Path) -> list[dict[str, object]]:
    """Blocks that the engine would give out from the same memory."""
    rows: list[dict[str, object]] = []
    for name in arguments.formats:
        options = {
            "model": str(path),
            "dummy_weights": arguments.shape is not None,
            "device": arguments.device,
            "dtype": "bfloat16",
            "kv_format": name,
            "memory_gib": arguments.memory_gib,
            "max_num_seqs": 512,
            "max_tokens_per_step": 512,
        }
        resolved, _ = resolve_config(from_options(options))
        tokens = resolved.num_blocks * resolved.block_size // len(resolved.groups)
        first = rows[0]["tokens"] if rows else tokens
        assert isinstance(first, int)
        row = {
            "kv_format": name,
            "blocks": resolved.num_blocks,
            "tokens": tokens,
            "ratio": tokens / first,
        }
        rows.append(row)
        print(
            f"{arguments.memory_gib} GiB: {name:8} {row['blocks']:7} blocks {tokens:8} tokens  x{tokens / first:.3f}"
        )
    return rows


class Decoding:
    """Sequences in a cache of one format; `step` computes one more token of the first `batch` of them."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        model: Decoder,
        name: str,
        batch: int,
        longest: int,
        block: int,
    ) -> None:
        self._block, self._device = block, ops.device
        kv_format: KVFormat | None = None if name == PLAIN else KV_FORMATS.build(name)
        groups = cache_groups(spec)
        per_seq = -(-longest // block)
        storage = KVStorage(spec, groups, ops, batch * per_seq * len(groups), block, kv_format)
        for cache in storage.caches:
            _fill(cache)
        self._sequences = SequenceTable(batch, per_seq, len(groups))
        self._buffers = StepBuffers(
            storage, block_size=block, max_tokens=batch, max_num_seqs=batch, max_rows=batch,
            max_blocks=per_seq, num_groups=len(groups), device=ops.device,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        blocks = (torch.randperm(batch * per_seq * len(groups), generator=generator) + 1).tolist()
        for seq in range(batch):
            ids = [5] * (longest + 1)
            params = SamplingParams()
            self._sequences.add(
                NewSequence(seq_id=seq, token_ids=ids, num_prompt=len(ids), params=params, seed=0)
            )
            for group in range(len(groups)):
                mine, blocks = blocks[:per_seq], blocks[per_seq:]
                self._sequences.update_table(BlockTableUpdate(seq, group, 0, mine))
        with torch.inference_mode():
            recording = ops.record(
                lambda shape: model.forward(self._buffers.step(shape)), self._buffers.largest
            )
        assert recording is not None, "these kernels cannot be recorded"
        self.recording = recording

    @torch.inference_mode()
    def step(self, context: int, batch: int) -> float:
        """Seconds."""
        rows = [
            Row(seq_id=seq, start=context - 1, num_tokens=1, num_samples=1) for seq in range(batch)
        ]
        began = time.perf_counter()
        shape, _ = self._buffers.fill(rows, self._sequences)
        self.recording.replay(shape)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def attention_seconds(self, batch: int) -> float | None:
        """Of the step that ran last."""
        if not isinstance(self.recording, NativeRecording):
            return None
        return time_program(self.recording, StepShape(batch, batch, batch, 1), repeats=3)[
            "attention"
        ]


def _fill(cache: LayerCache) -> None:
    """Random entries: memory that was never written may share one page of zeros."""
    for tensor in (cache.keys, cache.values):
        if cache.format is None:
            tensor.normal_()
        else:
            tensor.view(torch.uint8).random_(0, 120)
    for scales in (cache.key_scales, cache.value_scales):
        scales.fill_(0.01)


def measure_steps(
    arguments: argparse.Namespace, path: Path, quality: dict[str, Quality]
) -> Iterator[Step]:
    spec = read_spec(path)
    block = 64 if arguments.device == "cuda" else 16
    kernels = "triton" if arguments.device == "cuda" else "native"
    ops = make_ops(kernels, "bfloat16", arguments.device, arguments.threads)
    source = DummySource(spec) if arguments.shape is not None else open_weights(path)
    longest = max(arguments.contexts)
    model = load_model(source, spec, ops, "dense", longest + 1)
    runs = {
        name: Decoding(spec, ops, model, name, max(arguments.batches), longest, block)
        for name in arguments.formats
    }
    for context in arguments.contexts:
        for batch in arguments.batches:
            times: dict[str, list[float]] = {name: [] for name in runs}
            attention: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(arguments.rounds):
                for name, run in runs.items():
                    run.step(context, batch)
                    times[name] += [run.step(context, batch) for _ in range(arguments.steps)]
                    seconds = run.attention_seconds(batch)
                    attention[name] += [] if seconds is None else [seconds]
            for name in runs:
                step = _row(spec, quality[name], name, context, batch, times, attention)
                print(_show(step), flush=True)
                yield step


def _row(
    spec: ModelSpec,
    quality: Quality,
    name: str,
    context: int,
    batch: int,
    times: dict[str, list[float]],
    attention: dict[str, list[float]],
) -> Step:
    plain_s, step_s = (statistics.median(times[key]) for key in (PLAIN, name))
    has_parts = bool(attention[name])
    plain_part, part = (
        statistics.median(attention[key]) if has_parts else 0.0 for key in (PLAIN, name)
    )
    weights = 2 * spec.num_parameters
    if not spec.tie_embeddings:  # only a row of the input table is read for each token
        weights -= 2 * spec.vocab_size * spec.hidden_size
    groups = cache_groups(spec)
    kv_format = None if name == PLAIN else KV_FORMATS.build(name)
    plain_kv, kv = (
        len(groups) * kv_bytes_per_block(spec, groups, 1, "bfloat16", one) * context * batch
        for one in (None, kv_format)
    )
    return Step(
        context=context,
        batch=batch,
        kv_format=name,
        step_ms=1000 * step_s,
        attention_ms=1000 * part if has_parts else None,
        ratio=plain_s / step_s,
        attention_ratio=plain_part / part if has_parts else None,
        bound=(weights + plain_kv) / (weights + kv),
        perplexity=quality.perplexity,
        kl=quality.kl,
    )


def _show(step: Step) -> str:
    parts = ""
    if step.attention_ms is not None:
        parts = f"attention {step.attention_ms:8.2f} ms x{step.attention_ratio:.2f}  "
    return (
        f"context {step.context:6} batch {step.batch:3} {step.kv_format:8} step {step.step_ms:8.2f} ms "
        f"x{step.ratio:.2f} (bound {step.bound:.2f})  {parts}"
        f"perplexity {step.perplexity:.3f}  KL {step.kl:.5f}"
    )


if __name__ == "__main__":
    main()
