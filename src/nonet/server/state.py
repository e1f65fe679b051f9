"""What all endpoints of one server share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from nonet.config.schema import ServerConfig
from nonet.core.model_spec import GenerationDefaults
from nonet.engine.client import EngineClient
from nonet.gateway.pipeline import Pipeline
from nonet.server.auth import HostList, KeyRing
from nonet.server.sse import StreamGuard
from nonet.store.database import Database
from nonet.telemetry.ledger import Ledger
from nonet.telemetry.metrics import Metrics
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer

__all__ = ["ServedModel", "ServerState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The model as clients see it."""

    name: str
    created: int
    max_model_len: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    generation: GenerationDefaults


@dataclass(slots=True, kw_only=True)
class ServerState:
    """Owned by `nonet.server.run`; only `is_draining` and the set of active calls change."""

    config: ServerConfig
    engine: EngineClient
    tokenizer: Tokenizer
    template: ChatTemplate | None
    model: ServedModel
    keys: KeyRing
    hosts: HostList
    metrics: Metrics
    guard: StreamGuard
    pipeline: Pipeline  # the layers above the engine, and below them the engine
    database: Database | None  # None without a data_dir
    ledger: Ledger | None  # None where no layer books
    pool: ThreadPoolExecutor  # one thread: tokenising and templates of long prompts
    is_draining: bool = False
    active: set[object] = field(default_factory=set)  # calls that run, probes left out

    @property
    def is_ready(self) -> bool:
        return self.engine.is_ready and not self.is_draining
