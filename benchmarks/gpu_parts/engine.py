"""Parts that run in one engine in this process: the mix, decode by batch, prefill; and the naive mode."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import msgspec
import torch

from gpu_parts.job import Job, keep
from gpu_parts.published import CEILINGS, DECISIVE, DEVICE_NAME, TOLERANCE
from gpu_parts.rows import decode_rows, prefill_rows
from nonet.bench.device.ceilings import Sizes as CeilingSizes
from nonet.bench.device.ceilings import measure_ceilings
from nonet.bench.ladder.rungs import default_rungs
from nonet.bench.offline import run_offline
from nonet.bench.workload import Workload, mix
from nonet.config.load import changed, from_options
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM

__all__ = ["ENGINE_PARTS", "ceilings", "highest_id", "naive", "the_mix", "with_engine"]


def ceilings(job: Job) -> None:
    """The device's own limits, beside the published ones and how far from them."""
    device = torch.device(job.device)
    sizes = CeilingSizes(copy_bytes=1 << 20, product=64) if job.sizes == "tiny" else None
    found = measure_ceilings(device, sizes)
    rates = {
        "copy": found.copy_bytes_per_s,
        "sum": found.sum_bytes_per_s,
        **found.flops_per_s,
    }
    rows = {
        name: {
            "measured": rate,
            "published": CEILINGS.get(name),
            "deviation": rate / CEILINGS[name] - 1 if name in CEILINGS else None,
        }
        for name, rate in rates.items()
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    off = [rows[one]["deviation"] for one in DECISIVE[job.weights] if one in rows]
    near = [one is not None and abs(one) <= TOLERANCE for one in off]
    is_valid = name == DEVICE_NAME and bool(near) and all(near)
    keep(job, "ceilings", {"device_name": name, "rows": rows, "published_rows_hold": is_valid})


def with_engine(job: Job, model: str, parts: Sequence[str], show: Callable[[str], None]) -> None:
    """Run those parts, one after another, in one engine."""
    began = time.perf_counter()
    with LLM(model, **job.engine_options()) as llm:
        load_s = time.perf_counter() - began
        run_offline(llm, _first(the_mix(job, llm.spec.vocab_size), 4))
        keep(job, "start", {"load_s": load_s, "first_requests_s": time.perf_counter() - began - load_s},
             msgspec.to_builtins(llm.resolved))  # fmt: skip
        for part in parts:
            show(part)
            ENGINE_PARTS[part](job, llm)
        _keep_memory(job, llm)


def the_mix(job: Job, vocab_size: int) -> Workload:
    """The published mix: with full sizes, its very requests."""
    limits = job.limits
    return mix(
        limits.mix_requests,
        prompt=limits.mix_prompt,
        output=limits.mix_output,
        vocab_size=vocab_size,
    )


def naive(job: Job, model: str) -> None:
    """Static batches and everything off, but with the device's kernels and graphs, so that launches do not bound it."""
    limits = job.limits
    off = dict(default_rungs(job.device)[0].settings)
    for kept in ("kernels", "recording"):
        off.pop(kept, None)
    off |= {
        "batching": f"static:size={limits.naive_batch}",
        "max_num_seqs": str(limits.naive_batch),
    }
    given: dict[str, object] = {
        "model": model,
        "dummy_weights": True,
        "dtype": "bfloat16",
        "max_model_len": limits.context,
        # A batch starts in one step, which must hold its prompts.
        "max_tokens_per_step": max(limits.context, limits.naive_batch * (limits.mix_prompt[1] + 1)),
    }
    config = changed(from_options(given), off, "the naive mode")
    with LLM(config=config) as llm:
        work = _first(the_mix(job, llm.spec.vocab_size), limits.naive_requests)
        run_offline(llm, _first(work, limits.naive_batch // 4 or 1))
        summary, _ = run_offline(llm, work)
        keep(job, "naive", msgspec.to_builtins(summary), msgspec.to_builtins(llm.resolved))


def _keep_memory(job: Job, llm: LLM) -> None:
    """What the plan foresaw, beside what the device lacks now that every batch has been met."""
    plan = llm.resolved.memory
    figures: dict[str, object] = {
        "planned_bytes": plan.num_bytes,
        "plan": msgspec.to_builtins(plan),
    }
    if job.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "used_bytes": total - free,
            "allocated_peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.memory_reserved(),
        }
    keep(job, "memory", figures)


def _mix(job: Job, llm: LLM) -> None:
    work = the_mix(job, llm.spec.vocab_size)
    runs: list[object] = []
    for _ in range(2):
        steps, seconds = llm.engine.times.steps, _engine_seconds(llm)
        summary, _ = run_offline(llm, work)
        spent = {name: now - seconds[name] for name, now in _engine_seconds(llm).items()}
        more = {"steps": llm.engine.times.steps - steps, **spent}
        runs.append(msgspec.to_builtins(summary) | more)
        facts = {
            "workload": work.name,
            "sha256": work.digest(),
            "prompt_tokens": work.prompt_tokens,
        }
        keep(job, "mix", {**facts, "output_tokens": work.output_tokens, "runs": runs})  # fmt: skip


def _decode(job: Job, llm: LLM) -> None:
    limits = job.limits
    for rows in decode_rows(
        functools.partial(_seconds, llm), limits.decode_batches, limits.decode_prompt, limits.decode_output,
        highest_id(llm.spec.vocab_size),
    ):  # fmt: skip
        keep(job, "decode", {"rows": rows})


def _prefill(job: Job, llm: LLM) -> None:
    timed = functools.partial(_seconds, llm)
    for rows in prefill_rows(timed, job.limits.prefills, highest_id(llm.spec.vocab_size)):
        keep(job, "prefill", {"rows": rows})


ENGINE_PARTS = {"mix": _mix, "decode": _decode, "prefill": _prefill}


def _seconds(llm: LLM, prompts: list[list[int]], output_tokens: int) -> float:
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    began = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - began
    short = [one for one in outputs if len(one.outputs[0].token_ids) != output_tokens]
    if short:
        raise RuntimeError(f"{len(short)} requests ended early: {short[0].outputs[0]}")
    return seconds


def highest_id(vocab_size: int) -> int:
    """Of made-up prompts."""
    return min(120_000, vocab_size)


def _engine_seconds(llm: LLM) -> dict[str, float]:
    times = llm.engine.times
    return {"plan_s": times.plan_s, "execute_s": times.execute_s, "apply_s": times.apply_s}


def _first(work: Workload, count: int) -> Workload:
    return Workload(f"first {count} of {work.name}", work.items[:count])
