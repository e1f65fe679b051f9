"""The outside anchor: Hugging Face `generate` in static, left-padded batches, in a process of its own.

    python -m nonet.bench.ladder.huggingface JOB RESULT

The only file of the product that imports transformers, which is not a dependency: where it is not installed, the anchor
is reported as not measured.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from nonet.bench.ladder.result import Measured
from nonet.bench.metrics import RequestTimes, summarise

__all__ = ["HuggingFaceJob", "measure_huggingface"]


class HuggingFaceJob(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts as token ids with the number of tokens wanted of each, in order of arrival.

    With `dummy_weights` the folder needs a config.json alone, and the weights are those that transformers begins with.
    """

    model_path: str
    dummy_weights: bool = False
    repeats: int = 1
    dtype: str
    device: str
    threads: int
    batch_size: int
    prompts: list[list[int]]
    output_lens: list[int]


def measure_huggingface(job: HuggingFaceJob, name: str) -> Measured:
    """Only wanted tokens count as output: a batch runs until its longest is done. After a warm-up of two tokens."""
    settings = {
        "batch_size": str(job.batch_size),
        "dtype": job.dtype,
        "requests": str(len(job.prompts)),
    }
    if importlib.util.find_spec("transformers") is None:
        return Measured(
            name=name, settings=settings, error="not measured: transformers is not installed"
        )
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder, "job"), Path(folder, "result")
        job_file.write_bytes(msgspec.json.encode(job))
        command = [sys.executable, "-m", __name__, str(job_file), str(result_file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            return Measured(name=name, settings=settings, error=f"generate failed: {lines[-1]}")
        runs = msgspec.json.decode(result_file.read_bytes(), type=list[list[float]])
    return Measured(
        name=name, settings=settings, runs=[summarise(_times(job, ends)) for ends in runs]
    )


def _times(job: HuggingFaceJob, ends: list[float]) -> list[RequestTimes]:
    """All tokens of a batch are delivered when it ends."""
    return [
        RequestTimes(
            index=index, due_s=0.0, sent_s=0.0, delivery_s=[end_s],
            prompt_tokens=len(prompt), output_tokens=output_len,
        )
        for index, (end_s, prompt, output_len) in enumerate(
            zip(ends, job.prompts, job.output_lens, strict=True)
        )
    ]  # fmt: skip


def main(job_path: str, result_path: str) -> None:
    """Time all batches; writes the end of each request."""
    import torch
    import transformers

    job = msgspec.json.decode(Path(job_path).read_bytes(), type=HuggingFaceJob)
    torch.set_num_threads(job.threads)
    model = _model(job, torch, transformers)

    def run(prompts: list[list[int]], output_len: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=job.device)
        lengths = torch.tensor([len(one) for one in prompts], device=job.device)
        mask = torch.arange(longest, device=job.device) >= longest - lengths[:, None]
        model.generate(ids, attention_mask=mask.long(), max_new_tokens=output_len, do_sample=False)
        if job.device == "cuda":
            torch.cuda.synchronize()

    run(job.prompts[: job.batch_size], 2)
    runs: list[list[float]] = []
    for _ in range(job.repeats):
        began = time.perf_counter()
        ends: list[float] = []
        for at in range(0, len(job.prompts), job.batch_size):
            batch = job.prompts[at : at + job.batch_size]
            run(batch, max(job.output_lens[at : at + job.batch_size]))
            ends += [time.perf_counter() - began] * len(batch)
        runs.append(ends)
    Path(result_path).write_bytes(msgspec.json.encode(runs))


def _model(job: HuggingFaceJob, torch: Any, transformers: Any) -> Any:
    path, dtype = Path(job.model_path), getattr(torch, job.dtype)
    causal = transformers.AutoModelForCausalLM
    if job.dummy_weights:
        config = transformers.AutoConfig.from_pretrained(str(path))
        with torch.device(job.device):
            model = causal.from_config(config, dtype=dtype)
    else:
        folder, extra = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
        model = causal.from_pretrained(str(folder), dtype=dtype, **extra)
    model.to(job.device).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


if __name__ == "__main__":
    main(*sys.argv[1:])
