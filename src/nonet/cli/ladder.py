"""`nonet ladder`: what each technique saves on this model, device and workload."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Group, Parameter

from nonet.bench.ladder.climb import Quality, climb
from nonet.bench.ladder.html import page
from nonet.bench.ladder.huggingface import HuggingFaceJob, measure_huggingface
from nonet.bench.ladder.measure import Plan
from nonet.bench.ladder.quality import measure_quality
from nonet.bench.ladder.report import table
from nonet.bench.ladder.result import Climb, Measured, Store, key_of
from nonet.bench.ladder.rungs import Rung, choose, default_rungs
from nonet.bench.ladder.workload import mixed, read_jsonl, sample
from nonet.bench.metrics import Limits
from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.bench.workload import Workload, data_folder
from nonet.cli.flags import ENGINE, configured
from nonet.cli.terminal import note, progress
from nonet.config.convert import as_text
from nonet.config.load import Loaded
from nonet.config.machine import Machine
from nonet.config.options import options
from nonet.config.resolved import Resolved
from nonet.core.errors import ConfigError
from nonet.engine.prepare import PromptReader, resolve_config

__all__ = ["command"]

_GROUP = Group("Ladder", sort_key=50)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LadderFlags:
    """What is climbed, and how often each rung is measured."""

    price: Annotated[float, Parameter(help="of the machine per hour", group=_GROUP)] = 1.0
    workload: Annotated[
        str, Parameter(help="sample, mixed (from NONET_DATA), or a JSONL file", group=_GROUP)
    ] = "sample"
    num_requests: Annotated[int, Parameter(help="of sample and mixed", group=_GROUP)] = 64
    workload_seed: Annotated[int, Parameter(help="of sample and mixed", group=_GROUP)] = 0
    scale: Annotated[
        float, Parameter(help="lengths of sample and mixed are multiplied by it", group=_GROUP)
    ] = 1.0
    rungs: Annotated[
        tuple[str, ...], Parameter(help="only these, besides the first", group=_GROUP)
    ] = ()
    repeats: Annotated[int, Parameter(help="runs of each rung", group=_GROUP)] = 3
    latency_requests: Annotated[
        int, Parameter(help="requests of the latency pass; 0 leaves it out", group=_GROUP)
    ] = 16
    leave_out: Annotated[
        bool, Parameter(help="also the full stack without each rung", group=_GROUP)
    ] = True
    anchor: Annotated[
        Literal["huggingface", "none"], Parameter(help="what stands outside", group=_GROUP)
    ] = "huggingface"
    max_ttft: Annotated[float, Parameter(help="seconds, for goodput", group=_GROUP)] = 5.0
    max_tpot: Annotated[float, Parameter(help="seconds, for goodput", group=_GROUP)] = 0.2
    out: Annotated[Path, Parameter(help="folder of the results", group=_GROUP)] = Path("ladder")

    def make(self) -> Workload:
        """The requests that these flags stand for."""
        if self.workload == "sample":
            return sample(self.num_requests, seed=self.workload_seed, scale=self.scale)
        if self.workload == "mixed":
            folder = data_folder(os.environ)
            return mixed(folder, self.num_requests, seed=self.workload_seed, scale=self.scale)
        if not Path(self.workload).exists():
            raise ConfigError(
                f"no workload {self.workload!r}; give sample, mixed, or a JSONL file that exists"
            )
        return read_jsonl(Path(self.workload))


def ladder(loaded: Loaded, *, flags: LadderFlags | None = None) -> int:
    """Climb from naive to the full stack, one technique at a time, and show what each one brings."""
    flags = flags or LadderFlags()
    if not flags.price > 0 or flags.repeats < 1 or flags.num_requests < 1:
        raise ConfigError("price must be above 0, repeats and num_requests at least 1")
    workload = flags.make()
    resolved, _ = resolve_config(loaded.config)
    rungs = choose(default_rungs(resolved.device), flags.rungs)
    identity: dict[str, object] = {
        "commit": source_commit(),
        "model": resolved.model_path,
        "workload": workload.digest(),
        "limits": [flags.max_ttft, flags.max_tpot],
    }
    store = Store(flags.out / "measured")
    plan = Plan(
        workload=workload,
        options=_given(loaded),
        resolve=lambda config: resolve_config(config)[0],
        repeats=flags.repeats,
        limits=Limits(ttft_s=flags.max_ttft, tpot_s=flags.max_tpot),
        latency_requests=flags.latency_requests,
    )
    anchors = [] if flags.anchor == "none" else [_anchor(resolved, workload, store, identity)]
    with progress("ladder", "rungs") as show:

        def began(name: str, number: int, count: int) -> None:
            show(number, count)
            note(f"[{number + 1}/{count}] {name}")

        found = climb(
            rungs,
            plan,
            store,
            identity,
            leave_out=flags.leave_out,
            quality=_quality(rungs[0], plan),
            began=began,
        )
    result = Climb(
        model=resolved.served_name,
        workload=workload.name,
        workload_sha256=workload.digest(),
        workload_facts=dict(workload.facts),
        price_per_hour=flags.price,
        latency_rate_rps=found.latency_rate_rps,
        device=device_facts(Machine.detect()),
        commit=source_commit(),
        libraries=library_versions(),
        lossy=[rung.name for rung in rungs if rung.is_lossy],
        anchors=anchors,
        rungs=found.rungs,
        without=found.without,
    )
    return _publish(result, flags.out)


command = configured(ladder, *ENGINE, model_first=True)


def _quality(first: Rung, plan: Plan) -> Quality:
    """A configuration beside the first rung; what stands above the engine does not change what the model says."""

    def engine_only(settings: Mapping[str, str]) -> dict[str, str]:
        rows = options()
        return {name: text for name, text in settings.items() if rows[name].section in ENGINE}

    def measure(settings: dict[str, str]) -> dict[str, float]:
        # The reference computes nothing lossy, with the kernels of the rung: else their rounding would count.
        exact = {**engine_only(first.settings), "kernels": settings.get("kernels", "auto")}
        return measure_quality(plan.options, exact, engine_only(settings))

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
    resolved: Resolved, workload: Workload, store: Store, identity: dict[str, object]
) -> Measured:
    key = key_of({**identity, "anchor": "huggingface", "dtype": resolved.dtype})
    found = store.get(key)
    if found is None:
        note("Hugging Face generate, static batches of 32")
        reader = PromptReader(Path(resolved.model_path))
        job = HuggingFaceJob(
            model_path=resolved.model_path,
            dtype=resolved.dtype,
            device=resolved.device,
            threads=resolved.threads,
            batch_size=32,
            prompts=[
                reader.chat_ids(item.messages) if item.messages else list(item.prompt_ids)
                for item in workload.items
            ],
            output_lens=[item.output_len for item in workload.items],
        )
        found = measure_huggingface(job, "Hugging Face generate")
        store.put(key, found)
    return found


def _publish(result: Climb, folder: Path) -> int:
    """Table to the terminal; JSON and page to the folder. 1 when a rung has an error."""
    (folder / "ladder.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
    )
    (folder / "ladder.html").write_text(page(result), encoding="utf-8")
    print(table(result))
    note(f"written to {folder / 'ladder.json'} and {folder / 'ladder.html'}")
    return 1 if any(one.error for one in (*result.rungs, *result.without)) else 0
