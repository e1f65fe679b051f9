"""Names become objects: the one place that knows every part of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from nonet.config.resolved import CacheGroup, Resolved, SecondModelPlan
from nonet.core.clock import MonotonicClock
from nonet.core.messages import EngineInfo
from nonet.core.model_spec import ModelSpec
from nonet.core.request import Request
from nonet.engine.adapters import AdapterParts
from nonet.engine.engine import Engine, EngineParts
from nonet.engine.preparations import Preparations, Task
from nonet.engine.rehearsal import StandIn, rehearsing
from nonet.grammar.base import GrammarCompiler
from nonet.grammar.deferred import default_compiler
from nonet.kernels import FIXED_ORDER_KERNELS, KERNELS
from nonet.kernels.ops import Ops, Recording
from nonet.kv.cache import KVCache
from nonet.kv.compaction import CompactionRule
from nonet.kv.format import KV_FORMATS
from nonet.kv.prefix.hashed import HashedPrefixIndex
from nonet.kv.prune import PRUNERS
from nonet.kv.prune.base import Pruner
from nonet.kv.storage import KVStorage
from nonet.layers.parameters import Parameters
from nonet.models.decoder import Decoder
from nonet.models.registry import FAMILIES
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.runner.batch import StepBuffers
from nonet.runner.compactor import Compactor
from nonet.runner.executor import LocalExecutor
from nonet.runner.runner import Runner
from nonet.runner.second_model import SideModel
from nonet.runner.sequences import SequenceTable
from nonet.sampling.processors.grammar import GrammarMask
from nonet.sampling.sampler import Sampler
from nonet.scheduler.batching import BATCHINGS
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.policy import POLICIES
from nonet.scheduler.scheduler import Scheduler
from nonet.speculate import build_proposer
from nonet.speculate.base import Proposer, Services, no_gap
from nonet.speculate.cost import measure_cost
from nonet.text.tokenizer import load_tokenizer
from nonet.weights.base import WeightSource
from nonet.weights.dummy import DummySource
from nonet.weights.load import LoadedParameters
from nonet.weights.open import open_weights
from nonet.weights.spec import read_spec

__all__ = ["build_engine", "load_model", "make_compiler", "make_ops"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_engine(
    resolved: Resolved,
    spec: ModelSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """Load the model and build everything around it. `progress` is called with (layers loaded, all layers)."""
    began = time.monotonic()
    pruner = None if resolved.kv_prune is None else PRUNERS.build(resolved.kv_prune)
    spec = spec or read_spec(Path(resolved.model_path))
    ops = _ops(resolved)
    source = (
        DummySource(spec, resolved.seed, ops.device)
        if resolved.dummy_weights
        else open_weights(Path(resolved.model_path))
    )
    adapters = AdapterParts(resolved.adapters, spec, ops) if resolved.adapters else None
    with rehearsing(ops, resolved, spec, _stand_in):
        model = load_model(
            source, spec, ops, resolved.weight_format, resolved.max_model_len, progress, adapters
        )
    pool = adapters.open() if adapters else None
    compiler = make_compiler(resolved, spec)
    device_side = _device_side(resolved, spec, ops, model, compiler, pruner, adapters)
    kv = _kv_cache(resolved, pruner)
    ahead = resolved.speculation
    limits = SchedulerLimits(
        max_num_seqs=resolved.max_num_seqs,
        max_tokens_per_step=resolved.max_tokens_per_step,
        chunked_prefill=resolved.chunked_prefill,
        max_waiting=resolved.max_waiting,
        max_model_len=resolved.max_model_len,
        reserve_whole=resolved.kv_reservation == "worst_case",
        lookahead_tokens=ahead.lookahead_tokens if ahead else 0,
        max_drafts_per_step=ahead.max_drafts_per_step if ahead else 1,
    )
    clock = MonotonicClock()
    scheduler = Scheduler(
        limits,
        kv,
        POLICIES.build(resolved.policy),
        clock,
        batching=BATCHINGS.build(resolved.batching),
        seed=resolved.seed,
        resources=pool,
        awaits_tokens=device_side.runner.awaits_tokens if ahead else None,
    )
    info = _info(resolved, spec, ops, time.monotonic() - began, device_side.recording is not None)
    parts = EngineParts(
        scheduler=scheduler,
        executor=LocalExecutor(device_side.runner),
        clock=clock,
        info=info if pool is None else msgspec.structs.replace(info, adapters=pool.adapters),
        depth=1 if resolved.overlap else 0,
        close=ops.close,
        preparations=Preparations([lambda request: _compiling(compiler, request)]),
        commands=pool,
    )
    return Engine(parts)


@dataclass(frozen=True, slots=True)
class _DeviceSide:
    runner: Runner
    recording: Recording | None


def _ops(resolved: Resolved) -> Ops:
    return make_ops(
        resolved.kernels,
        resolved.dtype,
        resolved.device,
        resolved.threads,
        is_deterministic=resolved.deterministic,
    )


def make_ops(
    kernels: str, dtype: str, device: str, threads: int, *, is_deterministic: bool = False
) -> Ops:
    """The kernel implementation of that name, if asked the one with every sum in fixed order."""
    table = FIXED_ORDER_KERNELS if is_deterministic else KERNELS
    ops: Ops = table.load(kernels).create(DTYPES[dtype], torch.device(device), threads)
    return ops


def load_model(
    source: WeightSource,
    spec: ModelSpec,
    ops: Ops,
    weight_format: str,
    max_model_len: int,
    progress: Callable[[int, int], None] | None = None,
    adapters: AdapterParts | None = None,
) -> Decoder:
    """The model with its weights packed, and with slots for adapters if asked; closes the source."""
    try:
        parameters: Parameters = LoadedParameters(
            source, spec, ops, WEIGHT_FORMATS.build(weight_format)
        )
        if adapters is not None:
            ops, parameters = adapters.ops, adapters.wrap(parameters)
        return Decoder(spec, ops, parameters, FAMILIES.load(spec.family), max_model_len, progress)
    finally:
        source.close()


def _stand_in(resolved: Resolved, spec: ModelSpec) -> StandIn:
    """Made-up weights, and kernels and buffers of its own."""
    ops = _ops(resolved)
    source = DummySource(spec, resolved.seed, ops.device)
    model = load_model(source, spec, ops, resolved.weight_format, resolved.max_model_len)
    storage = _storage(resolved, spec, ops)
    buffers = _buffers(resolved, storage, ops, len(resolved.groups), resolved.max_num_seqs)
    return StandIn(ops, lambda shape: model.forward(buffers.step(shape)), buffers.largest)


def make_compiler(resolved: Resolved, spec: ModelSpec) -> GrammarCompiler:
    """The compiler of grammars for the model's vocabulary; reads and imports nothing before the first grammar."""
    return default_compiler(
        lambda: load_tokenizer(Path(resolved.model_path)),
        spec.vocab_size,
        spec.eos_ids,
        resolved.threads,
    )


def _compiling(compiler: GrammarCompiler, request: Request) -> Task | None:
    """What a request's grammar has to wait for."""
    grammar = request.params.grammar
    if grammar is None or compiler.is_compiled(grammar):
        return None
    return Task("compiling the grammar", lambda: compiler.compile(grammar))


def _kv_cache(resolved: Resolved, pruner: Pruner | None) -> KVCache:
    """The names of the prefix index say in which format entries are: those of other formats are other numbers."""
    rule = None
    if pruner is not None:
        needs = pruner.needs
        rule = CompactionRule(length=needs.budget, query_window=max(1, needs.query_window))
    return KVCache(
        resolved.groups,
        resolved.num_blocks,
        resolved.block_size,
        resolved.prefix_cache,
        index=HashedPrefixIndex(len(resolved.groups), resolved.block_size, resolved.kv_format),
        max_leased=resolved.max_leased_blocks,
        compaction=rule,
    )


def _device_side(
    resolved: Resolved,
    spec: ModelSpec,
    ops: Ops,
    model: Decoder,
    compiler: GrammarCompiler,
    pruner: Pruner | None,
    adapters: AdapterParts | None,
) -> _DeviceSide:
    storage = _storage(resolved, spec, ops)
    ahead = resolved.speculation
    drafts = ahead.max_drafts_per_step if ahead else 0
    num_groups = len(resolved.groups)
    buffers = _buffers(resolved, storage, ops, num_groups, resolved.max_num_seqs + drafts)
    plain = ops
    if adapters is not None:
        adapters.ops.rows = buffers.adapters
        ops = adapters.ops
    recording = _recording(resolved, model, buffers, ops)
    masking = GrammarMask(spec.vocab_size, compiler)
    sampler = Sampler(spec.vocab_size, resolved.max_num_seqs, ops.device, [masking], plain.sampling)
    adapter_slot = adapters.slot_of if adapters is not None else None
    sequences = SequenceTable(
        resolved.max_num_seqs, _max_blocks(resolved), num_groups, adapter_slot
    )
    proposer = build_proposer(ahead.speculate, ahead.draft_length) if ahead else None
    compactor = None if pruner is None else Compactor(pruner, spec, ops, storage)
    runner = Runner(model, plain, buffers, sequences, sampler, recording, compactor, proposer)
    if ahead is not None and proposer is not None:
        second = None
        if ahead.second_model is not None:
            second = _second_model(resolved, ahead.second_model, plain, sequences, sampler)
        most = min(buffers.max_rows, resolved.max_tokens_per_step, resolved.max_model_len)
        can_hide = resolved.overlap and resolved.device != "cpu"  # a CPU does both works in turn
        proposer.start(
            _services(proposer, runner, second, most, runner.gap.seconds if can_hide else no_gap)
        )
    return _DeviceSide(runner, recording)


def _storage(resolved: Resolved, spec: ModelSpec, ops: Ops) -> KVStorage:
    return KVStorage(
        spec,
        resolved.groups,
        ops,
        resolved.num_blocks,
        resolved.block_size,
        None if resolved.kv_format == resolved.dtype else KV_FORMATS.build(resolved.kv_format),
    )


def _services(
    proposer: Proposer,
    runner: Runner,
    second: SideModel | None,
    most_tokens: int,
    gap_s: Callable[[], float],
) -> Services:
    """What the proposer needs; steps of up to `most_tokens` tokens are timed."""
    if not proposer.needs.step_costs:
        return Services(second_model=second)
    return Services(
        target_cost=measure_cost(runner.time_step, most_tokens),
        second_cost=measure_cost(second.time_step, second.max_rows) if second else None,
        second_model=second,
        gap_s=gap_s,
    )


def _second_model(
    resolved: Resolved,
    plan: SecondModelPlan,
    ops: Ops,
    sequences: SequenceTable,
    sampler: Sampler,
) -> SideModel:
    path = Path(plan.model_path)
    spec = read_spec(path)
    source = (
        DummySource(spec, resolved.seed + 1, ops.device)
        if resolved.dummy_weights
        else open_weights(path)
    )
    model = load_model(source, spec, ops, plan.weight_format, resolved.max_model_len)
    groups = (CacheGroup(tuple(range(spec.num_layers)), None),)
    storage = KVStorage(spec, groups, ops, resolved.num_blocks, resolved.block_size)
    buffers = _buffers(resolved, storage, ops, 1, resolved.max_num_seqs)
    recording = _recording(resolved, model, buffers, ops)
    tables = sequences.only(plan.group)
    return SideModel(
        model, buffers, tables, sampler, recording, resolved.block_size, resolved.num_blocks
    )


def _buffers(
    resolved: Resolved, storage: KVStorage, ops: Ops, num_groups: int, max_rows: int
) -> StepBuffers:
    return StepBuffers(
        storage,
        block_size=resolved.block_size,
        max_tokens=resolved.max_tokens_per_step,
        max_num_seqs=resolved.max_num_seqs,
        max_rows=max_rows,
        max_blocks=_max_blocks(resolved),
        num_groups=num_groups,
        device=ops.device,
    )


def _max_blocks(resolved: Resolved) -> int:
    return -(-resolved.max_model_len // resolved.block_size)


def _recording(
    resolved: Resolved, model: Decoder, buffers: StepBuffers, ops: Ops
) -> Recording | None:
    if not resolved.recording:
        return None
    with torch.inference_mode():
        return ops.record(lambda shape: model.forward(buffers.step(shape)), buffers.largest)


def _info(
    resolved: Resolved, spec: ModelSpec, ops: Ops, load_s: float, recorded: bool
) -> EngineInfo:
    smallest = len(resolved.groups)  # a token takes a place in every group
    return EngineInfo(
        model=resolved.served_name,
        max_model_len=resolved.max_model_len,
        vocab_size=spec.vocab_size,
        dtype=resolved.dtype,
        weight_format=resolved.weight_format,
        num_blocks=resolved.num_blocks,
        block_size=resolved.block_size,
        kv_tokens=resolved.num_blocks * resolved.block_size // smallest,
        kernels=ops.name,
        attention=ops.name + (" (recorded)" if recorded else ""),
        speculation=resolved.speculation.speculate if resolved.speculation else "",
        reasons=resolved.reasons,
        threads=resolved.threads,
        load_s=load_s,
        deterministic=resolved.deterministic,
    )
