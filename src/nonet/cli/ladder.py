"""`nonet ladder`: what each technique saves on this model, device and workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from nonet.bench.ladder.batch_tier import measure_batch_tier
from nonet.bench.ladder.climb import Ascent, Budget, Quality, climb
from nonet.bench.ladder.html import page
from nonet.bench.ladder.huggingface import HuggingFaceJob, measure_huggingface
from nonet.bench.ladder.measure import Plan, refusal_of
from nonet.bench.ladder.picture import draw
from nonet.bench.ladder.quality import measure_quality
from nonet.bench.ladder.report import table
from nonet.bench.ladder.result import Climb, Measured, Store, key_of
from nonet.bench.ladder.rungs import (
    STATIC_BATCH,
    Rung,
    choose,
    default_rungs,
    sift,
    unclimbed,
    with_prompt_room,
)
from nonet.bench.metrics import Limits
from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.bench.workload import WorkItem, Workload
from nonet.cli.flags import ENGINE, configured
from nonet.cli.ladder_flags import LadderFlags
from nonet.cli.terminal import note, progress
from nonet.config.convert import as_text
from nonet.config.load import Loaded
from nonet.config.machine import Machine
from nonet.config.options import options
from nonet.config.resolved import Resolved
from nonet.core.errors import ConfigError, UnavailableError
from nonet.engine.prepare import PromptReader, resolve_config

__all__ = ["command"]

# Room in the context for what tells a run's requests from another run's, and the multiple that it is rounded to.
SPARE_TOKENS, CONTEXT_STEP = 24, 64


def ladder(loaded: Loaded, *, flags: LadderFlags | None = None) -> int:
    """Climb from naive to the full stack, one technique at a time, and show what each one brings."""
    flags = flags or LadderFlags()
    flags.check()
    budget = Budget(flags.budget_s)
    resolved, spec = resolve_config(loaded.config)
    workload = flags.make(dummy_weights=resolved.dummy_weights, vocab_size=spec.vocab_size)
    prompts = _prompts(resolved, workload)
    given = _given(loaded)
    context = str(_context(prompts, workload, spec.max_position))
    plan = _plan(flags, workload, {"max_model_len": context, **given})
    rungs, left_out = _rungs(resolved, flags, plan, max(map(len, prompts)) + SPARE_TOKENS)
    identity: dict[str, object] = {
        "commit": source_commit(),
        "model": resolved.model_path,
        "workload": workload.digest(),
        "limits": [flags.max_ttft, flags.max_tpot],
        "latency_requests": flags.latency_requests,
    }
    store = Store(flags.out / "measured")
    anchors = []
    if flags.anchor != "none":
        anchors.append(_anchor(resolved, prompts, flags, store, identity, workload))
    with _keeping(flags.out), progress("ladder", "rungs") as show:

        def began(name: str, number: int, count: int) -> None:
            note(f"[{number + 1}/{count}] {name}")
            show(number, count)

        found = climb(
            rungs,
            plan,
            store,
            identity,
            leave_out=flags.leave_out,
            quality=_quality(rungs[0], plan) if _has_quality(flags, resolved) else None,
            budget=budget,
            began=began,
            tier=measure_batch_tier if flags.batch_tier else None,
        )
    lossy = [rung.name for rung in rungs if rung.is_lossy]
    notes = _notes(resolved, flags, anchors, left_out)
    result = _climb(resolved, workload, flags, anchors, found, lossy, given, notes)
    return _publish(result, flags.out)


@contextmanager
def _keeping(folder: Path) -> Iterator[None]:
    """Who ends a climb is told that nothing is lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        note(f"interrupted: what was measured is kept in {folder}, and the same command goes on")
        raise


command = configured(ladder, *ENGINE, model_first=True)


def _rungs(
    resolved: Resolved, flags: LadderFlags, plan: Plan, longest_prompt: int
) -> tuple[list[Rung], dict[str, str]]:
    """What is climbed, and what is left out, with the reason."""
    known = default_rungs(resolved.device, has_weights=not resolved.dummy_weights)
    chosen = choose(with_prompt_room(known, longest_prompt), flags.rungs)
    rungs, refused = sift(chosen, lambda settings: refusal_of(settings, plan))
    if flags.rungs:
        for name, reason in refused.items():
            raise ConfigError(f"the rung {name} cannot be had here: {reason}; leave it out")
    left_out = {**refused, **({} if flags.rungs else unclimbed(resolved.device))}
    for name, reason in refused.items():
        note(f"without the rung {name}: {reason}")
    return rungs, left_out


def _plan(flags: LadderFlags, workload: Workload, given: dict[str, str]) -> Plan:
    return Plan(
        workload=workload,
        options=given,
        resolve=lambda config: resolve_config(config)[0],
        repeats=flags.repeats,
        limits=Limits(ttft_s=flags.max_ttft, tpot_s=flags.max_tpot),
        latency_requests=flags.latency_requests,
        rung_s=flags.rung_s,
    )


def _climb(
    resolved: Resolved,
    workload: Workload,
    flags: LadderFlags,
    anchors: list[Measured],
    found: Ascent,
    lossy: list[str],
    given: dict[str, str],
    notes: list[str],
) -> Climb:
    return Climb(
        model=resolved.served_name,
        workload=workload.name,
        workload_sha256=workload.digest(),
        workload_facts=dict(workload.facts),
        price_per_hour=flags.price,
        latency_rate_rps=found.latency_rate_rps,
        device=device_facts(Machine.detect()),
        commit=source_commit(),
        libraries=library_versions(),
        lossy=lossy,
        anchors=anchors,
        rungs=found.rungs,
        without=found.without,
        batch_tier=found.batch_tier,
        options=given,
        limits={"ttft_s": flags.max_ttft, "tpot_s": flags.max_tpot},
        notes=notes,
    )


def _prompts(resolved: Resolved, workload: Workload) -> list[list[int]]:
    """Token ids of every request, as the server will make them."""
    reader = PromptReader(Path(resolved.model_path))
    if any(item.messages for item in workload.items) and reader.tokenizer.chat_template is None:
        raise ConfigError(
            f"the workload holds conversations, and {resolved.served_name} has no chat template; "
            "give --workload synthetic, which is token ids"
        )
    return [
        _chat_ids(reader, item) if item.messages else list(item.prompt_ids)
        for item in workload.items
    ]


def _chat_ids(reader: PromptReader, item: WorkItem) -> list[int]:
    """With what the template is told besides: tools are part of the prompt."""
    tools: Any = item.extra.get("tools")
    settings: Any = item.extra.get("chat_template_kwargs")
    return reader.chat_ids(item.messages, tools=tools or None, template_kwargs=settings)


def _context(prompts: list[list[int]], workload: Workload, most: int) -> int:
    """The shortest context that holds the workload: worst-case reservations are then no worse than they must be."""
    needed = SPARE_TOKENS + max(
        len(prompt) + item.output_len for prompt, item in zip(prompts, workload.items, strict=True)
    )
    if needed > most:
        raise ConfigError(
            f"the workload has a request of {needed} tokens and the model takes {most}; give a smaller --scale"
        )
    return min(most, -(-needed // CONTEXT_STEP) * CONTEXT_STEP)


def _has_quality(flags: LadderFlags, resolved: Resolved) -> bool:
    return flags.quality and not resolved.dummy_weights


def _quality(first: Rung, plan: Plan) -> Quality:
    """A configuration beside the first rung; what stands above the engine does not change what the model says."""

    def engine_only(settings: Mapping[str, str]) -> dict[str, str]:
        rows = options()
        return {name: text for name, text in settings.items() if rows[name].section in ENGINE}

    def measure(settings: dict[str, str]) -> dict[str, float]:
        # The reference computes nothing lossy, with the kernels of the rung: else their rounding would count.
        exact = {**engine_only(first.settings), "kernels": settings.get("kernels", "auto")}
        given = {name: text for name, text in plan.options.items() if name != "max_model_len"}
        return measure_quality(given, exact, engine_only(settings))

    return measure


def _given(loaded: Loaded) -> dict[str, str]:
    """The options that are not at their defaults, as text; rungs are put on top of them."""
    given = {}
    for name, row in options().items():
        if row.key in loaded.sources:
            section = asdict(getattr(loaded.config, row.section))
            given[name] = as_text(section[name])
    return given


def _anchor(
    resolved: Resolved,
    prompts: list[list[int]],
    flags: LadderFlags,
    store: Store,
    identity: dict[str, object],
    workload: Workload,
) -> Measured:
    count = flags.anchor_requests or len(prompts)
    job = HuggingFaceJob(
        model_path=resolved.model_path,
        dummy_weights=resolved.dummy_weights,
        repeats=flags.repeats if flags.anchor_requests is None else 1,
        dtype="float16" if resolved.device == "cuda" else resolved.dtype,
        device=resolved.device,
        threads=resolved.threads,
        batch_size=STATIC_BATCH,
        prompts=prompts[:count],
        output_lens=[item.output_len for item in workload.items[:count]],
    )
    parts = {**identity, "anchor": "huggingface", "dtype": job.dtype, "requests": count}
    key = key_of({**parts, "repeats": job.repeats})
    found = store.get(key)
    if found is None:
        note(f"Hugging Face generate, static batches of {STATIC_BATCH}")
        found = measure_huggingface(job, "Hugging Face generate")
        if count < len(prompts):
            words = f"the first {count} of {len(prompts)} requests"
            found = msgspec.structs.replace(found, note=words)
        store.put(key, found)
    return found


def _notes(
    resolved: Resolved, flags: LadderFlags, anchors: list[Measured], left_out: Mapping[str, str]
) -> list[str]:
    notes = [f"No rung: {name}; {reason}." for name, reason in left_out.items()]
    if resolved.dummy_weights:
        notes.append(
            "Dummy weights: speed only. Rungs that depend on what the model says (speculation, answers alike in "
            "meaning) and the quality of lossy rungs need real weights and are left out."
        )
    if flags.anchor == "none" or not any(one.runs for one in anchors):
        notes.append("Without the outside anchor, factors are over nonet's own naive rung alone.")
    return notes


def _publish(result: Climb, folder: Path) -> int:
    """Table to the terminal; JSON, page and picture to the folder. 1 when a rung has an error."""
    (folder / "ladder.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
    )
    (folder / "ladder.html").write_text(page(result), encoding="utf-8")
    written = [folder / "ladder.json", folder / "ladder.html"]
    print(table(result))
    try:
        draw(result, folder / "ladder.png")
    except UnavailableError as error:
        note(f"no ladder.png: {error}")
    else:
        written.append(folder / "ladder.png")
    note("written: " + ", ".join(map(str, written)))
    return 1 if any(one.error for one in (*result.rungs, *result.without)) else 0
