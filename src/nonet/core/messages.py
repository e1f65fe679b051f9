"""What crosses the socket between the server and the engine process, named by receiver; msgpack, never pickle."""

from __future__ import annotations

import msgspec

from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request

__all__ = [
    "Abort",
    "AdapterInfo",
    "Add",
    "Answered",
    "Command",
    "EngineInfo",
    "EngineMessage",
    "EngineStats",
    "Failed",
    "LoadAdapter",
    "Outputs",
    "Ping",
    "Ready",
    "ServerMessage",
    "Shutdown",
    "UnloadAdapter",
]


class Add(msgspec.Struct, frozen=True, tag="add"):
    """To the engine: run this request."""

    request: Request


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """To the engine: drop these requests; unknown ids are ignored. `index` None means every choice."""

    request_ids: list[str]
    index: int | None = None


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """To the engine: answer with stats now."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """To the engine: end; what runs is aborted."""


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """To the engine: read the adapter in the directory `path` and offer it; `Answered` follows."""

    command_id: int
    name: str
    path: str


class UnloadAdapter(msgspec.Struct, frozen=True, tag="unload_adapter"):
    """To the engine: take no new request for this adapter, and drop it when nobody uses it; `Answered` follows."""

    command_id: int
    name: str


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that requests may ask for. `adapter_id` is what they carry: it changes with the content."""

    name: str
    adapter_id: str
    rank: int


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine became at start, for the start-up table and /v1/models."""

    model: str
    max_model_len: int
    vocab_size: int
    dtype: str
    weight_format: str
    num_blocks: int
    block_size: int
    kv_tokens: int
    kernels: str
    attention: str
    speculation: str = ""  # how tokens are guessed; empty for not at all
    reasons: dict[str, str] = {}  # automatic choice -> why
    threads: int = 1
    load_s: float = 0.0
    adapters: tuple[AdapterInfo, ...] = ()  # those loaded at start
    deterministic: bool = False  # every token's bits depend on its own sequence alone


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine; counters only grow. `steps` proves progress."""

    num_running: int = 0
    num_waiting: int = 0
    waiting_tokens: int = 0
    kv_usage: float = 0.0  # fraction of blocks in use by live sequences
    blocks_free: int = 0
    blocks_total: int = 0
    blocks_leased: int = 0  # kept by prompt caching; those that nobody reads are not free either
    steps: int = 0
    step_tokens: int = 0
    preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    late_joins: int = 0  # sequences that began while others were under way
    partial_prefills: int = 0  # rows that computed a prompt in part
    compactions: int = 0  # caches of live sequences that were pruned
    peak_blocks: int = 0  # most blocks that sequences held at once
    busy_s: float = 0.0  # seconds in which a step ran
    recorded_steps: int = 0  # steps that replayed a recording
    overlapped_steps: int = 0  # steps planned while another ran
    num_drafts: int = 0  # runs of drafted tokens that were verified
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_per_position: list[int] = []  # [i]: runs of which the first i + 1 tokens stood
    integrity_error: str | None = None  # what check_integrity said when the engine last went idle


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """To the server: the engine takes requests."""

    info: EngineInfo


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """To the server: deltas of one step, with stats now and then (and always after a Ping)."""

    deltas: list[SequenceDelta]
    stats: EngineStats | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """To the server: the engine could not start, or ends because of an error."""

    error: str
    is_user_error: bool = False


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """To the server: a command is done, or failed for the reason in `error`."""

    command_id: int
    adapter: AdapterInfo | None = None
    error: str | None = None
    is_unknown: bool = False  # what the command names does not exist


Command = LoadAdapter | UnloadAdapter
EngineMessage = Add | Abort | Ping | Shutdown | Command
ServerMessage = Ready | Outputs | Failed | Answered
