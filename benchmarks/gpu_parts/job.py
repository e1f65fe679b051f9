"""What is measured, at which sizes, and how a part's figures are kept."""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.config.machine import Machine

__all__ = ["SIZES", "Job", "Sizes", "keep", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Everything that makes a run long or short. Latency: (requests per second, how many of them)."""

    mix_requests: int
    mix_prompt: tuple[int, int]
    mix_output: tuple[int, int]
    mix_seats: int  # max_num_seqs
    context: int
    decode_batches: tuple[int, ...]
    decode_prompt: int
    decode_output: int
    prefills: tuple[tuple[int, int, int], ...]  # batch, prompt length, repeats
    latency: tuple[tuple[float, int], ...]
    latency_warm_up: int
    latency_idle_s: float
    huggingface: tuple[tuple[int, int], ...]  # batch, requests
    naive_requests: int
    naive_batch: int


SIZES = {
    "full": Sizes(
        mix_requests=512,
        mix_prompt=(32, 1024),
        mix_output=(32, 512),
        mix_seats=512,
        context=4096,
        decode_batches=(1, 8, 32, 64, 128, 256),
        decode_prompt=128,
        decode_output=256,
        prefills=((1, 128, 20), (1, 2048, 5), (8, 2048, 3), (32, 2048, 2)),
        latency=((2, 48), (8, 128), (16, 256), (24, 384)),
        latency_warm_up=128,
        latency_idle_s=10,
        huggingface=((8, 8), (32, 32)),
        naive_requests=128,
        naive_batch=32,
    ),
    "tiny": Sizes(
        mix_requests=6,
        mix_prompt=(4, 24),
        mix_output=(3, 9),
        mix_seats=4,
        context=256,
        decode_batches=(1, 3),
        decode_prompt=8,
        decode_output=5,
        prefills=((1, 8, 2), (2, 32, 1)),
        latency=((50, 4),),
        latency_warm_up=2,
        latency_idle_s=0,
        huggingface=((2, 3),),
        naive_requests=3,
        naive_batch=2,
    ),
}


# What fits in five minutes: the same mix and batches, the highest rate alone, half of the naive requests.
SIZES["short"] = replace(
    SIZES["full"],
    prefills=((1, 128, 5), (1, 2048, 2), (8, 2048, 2)),
    latency=((24, 384),),
    huggingface=((8, 8), (32, 32)),
    naive_requests=64,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the comparison. `options` go to nonet's engine on top of what each part needs."""

    shape: str
    weights: str  # "bf16" or "fp8"
    device: str
    sizes: str
    out: str
    commit: str | None = None
    options: dict[str, object] = field(default_factory=dict)

    @property
    def limits(self) -> Sizes:
        return SIZES[self.sizes]

    def engine_options(self, **more: object) -> dict[str, object]:
        """Of the optimised engine: `options` wins over `more`, which wins over these."""
        return {
            "dummy_weights": True,
            "device": self.device,
            "dtype": "bfloat16",
            "weight_format": "fp8" if self.weights == "fp8" else "dense",
            "kv_format": "fp8" if self.weights == "fp8" else "auto",
            "prefix_cache": False,
            "max_model_len": self.limits.context,
            "max_num_seqs": self.limits.mix_seats,
            **more,
            **self.options,
        }


def keep(job: Job, part: str, figures: dict[str, object], config: object = None) -> None:
    """Write a part's figures with all that is needed to judge them; a later call replaces an earlier one."""
    record = {
        "part": part,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **_surroundings(),
        "commit": job.commit or source_commit(),
        "job": asdict(job),
        "sizes": asdict(job.limits),
        "config": config,
        "figures": figures,
    }
    folder = Path(job.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{job.weights}-{part}.json").write_text(json.dumps(record, indent=1) + "\n")


@functools.cache
def _surroundings() -> dict[str, object]:
    """Asked for once: it takes a second where there is a GPU, and parts are kept in between measurements."""
    versions = library_versions() | {"python": sys.version.split()[0]}
    for name in ("triton", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"device": device_facts(Machine.detect()), "versions": versions}


def load(out: Path, weights: str, part: str) -> dict[str, object] | None:
    """The figures that were kept; None when the part has not run."""
    file = out / f"{weights}-{part}.json"
    if not file.exists():
        return None
    figures: dict[str, object] = json.loads(file.read_text())["figures"]
    return figures
