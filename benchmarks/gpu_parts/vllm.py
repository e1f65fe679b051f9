"""vLLM itself on the same device, where its Python is given: the same requests, counted the same way."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from gpu_parts.engine import highest_id, the_mix
from gpu_parts.job import Job, keep
from gpu_parts.latency import ARRIVAL_SEED
from nonet.bench.arrivals import poisson
from nonet.bench.metrics import RequestTimes, summarise
from nonet.bench.workload import Workload
from shapes import SHAPES

__all__ = ["vllm", "vllm_latency"]

SCRIPT = Path(__file__).parents[1] / "vllm_peer.py"
# Its defaults but for these, as the published rows.
OPTIONS: dict[str, object] = {
    "load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16", "enable_prefix_caching": False,
    "gpu_memory_utilization": 0.9, "seed": 0,
}  # fmt: skip
FP8: dict[str, object] = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
# As the published latency rows: the asynchronous engine's own defaults are fewer sequences and tokens than `LLM`'s.
LATENCY: dict[str, object] = {"max_num_batched_tokens": 8192, "max_num_seqs": 1024}


def vllm(job: Job, model: str, python: str) -> None:
    """The mix, decode by batch, prefill. `python` is the command of vLLM's Python."""
    limits = job.limits
    work = {
        "options": _options(job, model),
        "mix": _items(job, limits.mix_requests),
        "decode": {
            "batches": limits.decode_batches,
            "prompt": limits.decode_prompt,
            "output": limits.decode_output,
        },
        "prefill": limits.prefills,
        "highest_id": highest_id(_vocab_size(job)),
    }
    keep(job, "vllm", _run(job, "vllm", python, work), work["options"])


def vllm_latency(job: Job, model: str, python: str) -> None:
    """Poisson arrivals at its asynchronous engine."""
    limits = job.limits
    most = max([limits.latency_warm_up, *(count for _, count in limits.latency)])
    work_items = the_mix(job, _vocab_size(job)).items
    arrivals = {
        f"{rate:g}": poisson(Workload("latency", work_items[:count]), rate, ARRIVAL_SEED)
        for rate, count in limits.latency
    }
    work = {
        "options": {**_options(job, model), **LATENCY},
        "mix": _items(job, most),
        "warm_up": limits.latency_warm_up,
        "arrivals": arrivals,
    }
    found = _run(job, "vllm-latency", python, work)
    rows = {}
    for rate, requests in found.pop("requests").items():
        times = msgspec.convert(requests, list[RequestTimes])
        rows[rate] = msgspec.to_builtins(summarise(times)) | {"requests": requests}
    keep(job, "vllm-latency", {**found, "rows": rows}, work["options"])


def _options(job: Job, model: str) -> dict[str, object]:
    chosen = FP8 if job.weights == "fp8" else {}
    return {"model": model, "max_model_len": job.limits.context, **OPTIONS, **chosen}


def _items(job: Job, count: int) -> list[dict[str, object]]:
    return [
        {"prompt_ids": list(item.prompt_ids), "output_len": item.output_len}
        for item in the_mix(job, _vocab_size(job)).items[:count]
    ]


def _vocab_size(job: Job) -> int:
    size = SHAPES[job.shape]["vocab_size"]
    assert isinstance(size, int)
    return size


def _run(job: Job, part: str, python: str, work: dict[str, object]) -> dict[str, Any]:
    """What the script measured. Should it be stopped, what it had by then stays in the folder."""
    found = Path(job.out, f"{job.weights}-{part}-unfinished.json").absolute()
    found.parent.mkdir(parents=True, exist_ok=True)
    found.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "work.json")
        given.write_text(json.dumps(work))
        command = [*shlex.split(python), str(SCRIPT), str(given), str(found)]
        code = subprocess.run(command, check=False).returncode
    if code:
        raise RuntimeError(
            f"{shlex.join(command)} ended with {code}; what it had measured is in {found}"
        )
    result: dict[str, Any] = json.loads(found.read_text())
    found.unlink()
    return result
