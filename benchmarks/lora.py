"""Decode speed with many adapters in one batch beside that of the base model, in turn, in one process.

    python benchmarks/lora.py --model smollm2 --out benchmarks/<date>-<device>-lora
    python benchmarks/lora.py --shape 8b --device cuda --targets attention all --out benchmarks/<date>-<device>-lora

Adapters are made up, in PEFT's layout, and loaded like others. Each has a slot of its own, so their weights lie in
different memory although the numbers are the same. A row is a mix of `distinct` adapters over the batch; each of
`--targets` has an engine and a file of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from nonet.core.model_spec import ModelSpec
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from record import write_record

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 128001,
}


@dataclass(frozen=True)
class Row:
    """Output tokens per second of decode steps; the ratio is the median of the rounds' ratios."""

    distinct: int
    base_tokens_per_s: float
    mixed_tokens_per_s: float
    ratio: float
    ratio_min: float
    ratio_max: float


def main() -> None:
    arguments = _parse()
    for targets in arguments.targets:
        _run(arguments, targets)


def _run(arguments: argparse.Namespace, targets: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with _engine(arguments, root, targets) as llm:
            rows = [_measure(arguments, llm, distinct) for distinct in arguments.distinct]
            info = llm.engine.info
    print(f"targets: {targets}")
    print(f"{'adapters':>8} {'base tok/s':>11} {'mixed tok/s':>11} {'ratio':>6}   (min to max)")
    for row in rows:
        print(
            f"{row.distinct:8d} {row.base_tokens_per_s:11.1f} {row.mixed_tokens_per_s:11.1f} {row.ratio:6.3f}   "
            f"({row.ratio_min:.3f} to {row.ratio_max:.3f})"
        )
    if arguments.out is not None:
        name = arguments.shape or Path(arguments.model).stem
        write_record(
            arguments.out / f"{name}-rank{arguments.rank}-{targets}.json",
            arguments.commit,
            kernels=info.kernels,
            dtype=info.dtype,
            weight_format=info.weight_format,
            batch=arguments.batch,
            targets=targets,
            rows=[asdict(row) for row in rows],
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="smollm2")
    add("--shape", choices=["8b"], help="made-up weights of this shape instead of a model")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--dtype", default="auto")
    add("--weight-format", default="auto")
    add("--batch", type=int, default=32)
    add("--prompt", type=int, default=16, help="prompt tokens of each request")
    add("--output", type=int, default=64, help="output tokens of each request")
    add("--rank", type=int, default=16)
    add("--targets", choices=["all", "attention"], nargs="+", default=["all"])
    add("--distinct", type=int, nargs="+", default=[1, 8, 32], help="adapters in the batch")
    add("--rounds", type=int, default=5)
    add("--threads", type=int)
    add("--out", type=Path)
    add("--commit", help="what runs, where there is no git to ask")
    return parser.parse_args()


def _engine(arguments: argparse.Namespace, root: Path, targets: str) -> LLM:
    model = arguments.model
    if arguments.shape is not None:
        model = str(root / "model")
        Path(model).mkdir()
        (root / "model" / "config.json").write_text(json.dumps(LLAMA_8B))
    most = max(arguments.distinct)
    options: dict[str, object] = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "weight_format": arguments.weight_format,
        "max_model_len": arguments.prompt + arguments.output + 16,
        "max_num_seqs": arguments.batch,
        "prefix_cache": False,
        "dummy_weights": arguments.shape is not None,
        "max_loras": most,
        "max_lora_rank": arguments.rank,
        "max_cpu_loras": most,
        "lora_dir": str(root),
    }
    if arguments.threads is not None:
        options["threads"] = arguments.threads
    llm = LLM(model, **options)
    _write_adapter(root / "adapter", llm.spec, arguments.rank, targets)
    for number in range(most):
        llm.load_adapter(f"a{number}", root / "adapter")
    return llm


def _write_adapter(folder: Path, spec: ModelSpec, rank: int, targets: str) -> None:
    """Small random numbers, so that the made-up model still says something."""
    folder.mkdir()
    names = ATTENTION if targets == "attention" else tuple(spec.linears)
    tensors = {}
    for layer in range(spec.num_layers):
        for name in names:
            outputs, inputs = spec.linears[name]
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            first, second = torch.randn(rank, inputs) * 0.01, torch.randn(outputs, rank) * 0.01
            tensors[f"{prefix}.lora_A.weight"] = first.bfloat16()
            tensors[f"{prefix}.lora_B.weight"] = second.bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(names)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _measure(arguments: argparse.Namespace, llm: LLM, distinct: int) -> Row:
    ids = [adapter.adapter_id for adapter in llm.adapters[:distinct]]
    mixed = [ids[number % distinct] for number in range(arguments.batch)]
    base = [""] * arguments.batch
    _decode_speed(arguments, llm, mixed)
    _decode_speed(arguments, llm, base)
    pairs = []
    for _ in range(arguments.rounds):
        pairs.append((_decode_speed(arguments, llm, base), _decode_speed(arguments, llm, mixed)))
    ratios = [with_adapters / without for without, with_adapters in pairs]
    return Row(
        distinct=distinct,
        base_tokens_per_s=round(statistics.median(pair[0] for pair in pairs), 1),
        mixed_tokens_per_s=round(statistics.median(pair[1] for pair in pairs), 1),
        ratio=round(statistics.median(ratios), 4),
        ratio_min=round(min(ratios), 4),
        ratio_max=round(max(ratios), 4),
    )


def _decode_speed(arguments: argparse.Namespace, llm: LLM, adapter_ids: list[str]) -> float:
    """Tokens per second once every prompt is computed."""
    rng = random.Random(0)
    params = SamplingParams(temperature=0.0, max_tokens=arguments.output, ignore_eos=True)
    engine = llm.engine
    for number, adapter_id in enumerate(adapter_ids):
        prompt = [rng.randrange(10, 1000) for _ in range(arguments.prompt)]
        engine.add(
            Request(
                request_id=f"r{number}", prompt_ids=prompt, params=params, adapter_id=adapter_id
            )
        )
    begun: set[str] = set()
    while len(begun) < len(adapter_ids):
        begun |= {delta.request_id for delta in engine.step()}
    tokens = 0
    start = time.perf_counter()
    while engine.has_work:
        tokens += sum(len(delta.token_ids) for delta in engine.step())
    return tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
