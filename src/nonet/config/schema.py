"""Every option of nonet, as frozen nested sections; a field's `Doc` is its help on the command line and in the docs.

"auto" and None mean that `nonet.config.resolve` picks a value and says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

__all__ = [
    "CacheConfig",
    "Config",
    "Doc",
    "GatewayConfig",
    "LoraConfig",
    "ModelConfig",
    "RuntimeConfig",
    "SchedulerConfig",
    "ServerConfig",
    "SpeculationConfig",
]


@dataclass(frozen=True, slots=True)
class Doc:
    """Help text and bounds of a field, carried in its annotation: `Annotated[int, Doc("...", 1)]`.

    `alias` is a second name on the command line and in Python.
    """

    text: str
    minimum: float | None = None
    maximum: float | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights are held."""

    model: Annotated[str, Doc("packaged name, hub id, directory or GGUF file")] = "smollm2"
    revision: Annotated[str | None, Doc("commit, tag or branch of a hub model")] = None
    served_name: Annotated[str | None, Doc("name clients use; the model argument when unset")] = (
        None
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc("dtype of the weights and, without a kv_format, of the KV cache"),
    ] = "auto"
    weight_format: Annotated[
        str,
        Doc(
            "how matrices are held: auto, or a format with its options, such as int8, int4:group=128, w8a8, fp8, "
            "native (codes and 8-bit floats as in the file) or dense (in dtype)",
            alias="quant",
        ),
    ] = "auto"
    max_model_len: Annotated[int | None, Doc("most tokens of prompt plus output", 1)] = None
    dummy_weights: Annotated[bool, Doc("random weights of the model's shape, for benchmarks")] = (
        False
    )
    seed: Annotated[int, Doc("seed of dummy weights and of requests that bring none", 0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The KV cache."""

    block_size: Annotated[int | None, Doc("tokens per KV block; a multiple of 16", 16)] = None
    num_blocks: Annotated[int | None, Doc("KV blocks; sized from free memory when unset", 1)] = None
    memory_fraction: Annotated[
        float | None, Doc("share of the free memory after loading that KV blocks may take", 0.01, 1)
    ] = None
    memory_gib: Annotated[float | None, Doc("KV memory in GiB; overrides memory_fraction", 0)] = (
        None
    )
    kv_format: Annotated[
        str, Doc("how keys and values are held: auto (the model's dtype), int8 or fp8 (lossy)")
    ] = "auto"
    prefix_cache: Annotated[bool, Doc("reuse the KV of equal prompt beginnings")] = True
    kv_reservation: Annotated[
        Literal["paged", "worst_case"],
        Doc("paged: blocks as tokens come; worst_case: room for the longest output at the start"),
    ] = "paged"
    lease_fraction: Annotated[
        float, Doc("share of the KV blocks that prompt caching may keep for its clients", 0, 1)
    ] = 0.25
    kv_prune: Annotated[
        str | None,
        Doc(
            "keep the most useful KV of long prompts (lossy): snapkv:budget=1024,window=32 or recent"
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who runs, and how much of it, in a step."""

    policy: Annotated[
        str,
        Doc(
            "order of waiting requests: fcfs, priority, or slo with targets, as in slo:interactive_ttft=1"
        ),
    ] = "fcfs"
    batching: Annotated[
        str, Doc("continuous, or static:size=32 (a baseline to measure against)")
    ] = "continuous"
    max_num_seqs: Annotated[int | None, Doc("most sequences in one step", 1)] = None
    max_tokens_per_step: Annotated[int | None, Doc("token budget of one step", 1)] = None
    chunked_prefill: Annotated[bool, Doc("spread a long prompt over several steps")] = True
    max_waiting: Annotated[int, Doc("most requests in the queue; more are answered 429", 1)] = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """Tokens guessed ahead, which steps verify."""

    speculate: Annotated[
        str | None,
        Doc("how tokens are guessed: prompt_lookup, or draft_model:model=NAME; none when unset"),
    ] = None
    draft_length: Annotated[
        str, Doc("how many guesses are verified: adaptive (as many as pay) or fixed")
    ] = "adaptive"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Device, kernels and threads."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Doc("where the model runs")] = "auto"
    kernels: Annotated[str, Doc("auto, or an implementation of the kernels by name")] = "auto"
    recording: Annotated[
        bool, Doc("record the forward pass once and replay it (CUDA graphs, native program)")
    ] = True
    deterministic: Annotated[
        bool,
        Doc(
            "the same bits for a request alone, in any batch and in any chunk; costs speed on a GPU"
        ),
    ] = False
    overlap: Annotated[
        bool | None, Doc("plan the next step while the device runs one; on a GPU when unset")
    ] = None
    threads: Annotated[
        int | None,
        Doc("threads of the engine process; physical cores or OMP_NUM_THREADS when unset", 1),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Adapters over the model: off unless some are named or may be loaded later."""

    lora_modules: Annotated[
        tuple[str, ...], Doc("adapters to load at start: NAME=DIRECTORY, as PEFT writes it")
    ] = ()
    lora_dir: Annotated[
        str | None,
        Doc("directory below which adapters may be loaded while serving; unset: none may"),
    ] = None
    max_loras: Annotated[
        int, Doc("adapters that can run in one step: slots in the device's memory", 1, 1024)
    ] = 8
    max_lora_rank: Annotated[int, Doc("largest rank; each slot has room for it", 1, 512)] = 16
    max_cpu_loras: Annotated[int, Doc("most adapters loaded at a time, in host memory", 1)] = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP server."""

    host: Annotated[str, Doc("address to listen on; anything but loopback needs an API key")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Doc("TCP port; 0 picks a free one", 0, 65535)] = 8000
    api_keys: Annotated[
        tuple[str, ...], Doc("keys that clients may use; also one per line in api_key_file")
    ] = ()
    api_key_file: Annotated[str | None, Doc("file with one API key per line")] = None
    allowed_hosts: Annotated[
        tuple[str, ...], Doc("Host headers accepted besides the bound address; * for any")
    ] = ()
    max_body_bytes: Annotated[int, Doc("largest request body", 1)] = 8 * 1024 * 1024
    stream_buffer_bytes: Annotated[
        int, Doc("bytes a stream may hold for a slow reader before it is cut", 1)
    ] = 1 << 20
    drain_s: Annotated[float, Doc("seconds that running requests get after SIGTERM", 0)] = 30.0
    keep_alive_s: Annotated[
        float, Doc("seconds between keep-alive comments on a silent stream", 0)
    ] = 15.0
    tool_format: Annotated[
        str,
        Doc("how the model writes tool calls: auto, as its chat template shows, or a format"),
    ] = "auto"
    reasoning_parser: Annotated[
        str,
        Doc(
            "how the model marks its thoughts: auto, as its chat template shows, none, or think, bracketed, seed"
        ),
    ] = "auto"
    embedder: Annotated[
        str | None, Doc("text encoder offered beside the model: a packaged name or a directory")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Doc("lowest level logged")
    ] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What stands above the engine."""

    gateway: Annotated[
        tuple[str, ...],
        Doc("layers above the engine, each as name:key=value: ledger, exact_cache, semantic_cache"),
    ] = ()
    data_dir: Annotated[
        str | None,
        Doc("folder for what outlives the server: ledger, cached answers, files and batches"),
    ] = None
    batch_lines: Annotated[
        int | None,
        Doc("most requests of batches at a time; as many as the engine has room for when unset", 1),
    ] = None
    files_gib: Annotated[float, Doc("room in data_dir for files and answers of batches", 0)] = 16.0
    price_table: Annotated[str | None, Doc("JSON file of prices in LiteLLM's format")] = None
    store_sync: Annotated[
        Literal["full", "normal"],
        Doc("full: what is written survives a power cut; normal: the end of the process only"),
    ] = "full"
    admin: Annotated[
        str | None, Doc("where admin routes listen: unix:PATH, or 127.0.0.1:PORT with an admin_key")
    ] = None
    admin_key: Annotated[str | None, Doc("the key of admin routes on a port")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
