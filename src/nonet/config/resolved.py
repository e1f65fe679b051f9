"""The configuration after every "auto" has become a value, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "AdapterPlan",
    "CacheGroup",
    "MemoryPlan",
    "Resolved",
    "SecondModelPlan",
    "SpeculationPlan",
]


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that store KV alike and share block tables: `layers` are model layer numbers."""

    layers: tuple[int, ...]
    window: int | None  # sliding window in tokens, None for full attention


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """Adapters over the model."""

    modules: tuple[tuple[str, str], ...]  # name and directory of those loaded at start
    directory: str | None  # below which more may be loaded while serving
    num_slots: int
    max_rank: int
    max_registered: int
    slot_bytes: int  # of all slots, on the device


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where the bytes go; predicted before loading."""

    weight_bytes: int
    kv_bytes_per_block: int  # one block of one group: all its layers, keys and values
    kv_bytes: int
    workspace_bytes: int
    free_bytes: int
    graph_bytes: int = 0  # recorded steps on a GPU
    runtime_bytes: int = 0  # what the device's runtime takes for itself
    second_model_bytes: int = 0  # weights and workspace; its KV is part of kv_bytes

    @property
    def num_bytes(self) -> int:
        """All of it but adapters, which the plan for them counts."""
        held = self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.second_model_bytes
        return held + self.graph_bytes + self.runtime_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondModelPlan:
    """A model that runs beside the first on the same sequences, in the same blocks."""

    model_path: str
    weight_format: str
    weight_bytes: int
    workspace_bytes: int
    kv_bytes_per_block: int
    group: int  # the cache group whose block tables it shares


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationPlan:
    """How tokens are guessed, and what that takes."""

    speculate: str  # spec string of a proposer
    draft_length: str  # spec string of a length rule
    max_drafts: int  # for one sequence
    max_drafts_per_step: int  # over all sequences
    lookahead_tokens: int  # KV slots past a row's own tokens
    second_model: SecondModelPlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What the engine is built from."""

    model_path: str  # a local directory or GGUF file; "" with dummy weights of a bare config
    served_name: str
    dtype: str  # "float32" | "bfloat16" | "float16"
    weight_format: str  # a spec string of the catalogue of weight formats
    dummy_weights: bool
    seed: int
    max_model_len: int
    device: str
    kernels: str  # by its name in the catalogue
    recording: bool
    overlap: bool  # the next step is planned while the device runs one
    deterministic: bool = False  # every token's bits depend on its own sequence alone
    threads: int
    block_size: int
    num_blocks: int  # without the null block
    kv_format: str  # a KV format, or the dtype where nothing is rounded further
    groups: tuple[CacheGroup, ...]
    prefix_cache: bool
    kv_reservation: str  # "paged" | "worst_case"
    max_leased_blocks: int = 0  # that prompt caching may keep
    policy: str
    batching: str
    max_num_seqs: int
    max_tokens_per_step: int
    chunked_prefill: bool
    max_waiting: int
    memory: MemoryPlan
    kv_prune: str | None = None  # spec string of a KV pruner
    adapters: AdapterPlan | None = None  # None: no adapters are served
    speculation: SpeculationPlan | None = None
    reasons: dict[str, str] = field(default_factory=dict)
