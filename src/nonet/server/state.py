"""What all endpoints of one server share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from nonet.config.schema import ServerConfig
from nonet.core.errors import ModelNotFoundError
from nonet.core.messages import AdapterInfo
from nonet.core.model_spec import GenerationDefaults
from nonet.engine.client import EngineClient
from nonet.gateway.pipeline import Pipeline
from nonet.server.auth import HostList, KeyRing
from nonet.server.encoder import ServedEncoder
from nonet.server.grammar import GrammarGate
from nonet.server.limits import check_length
from nonet.server.sse import StreamGuard
from nonet.server.thoughts import ThoughtSupport
from nonet.server.tools import ToolSupport
from nonet.store.batches import BatchStore
from nonet.store.completions import CompletionStore
from nonet.store.database import Database
from nonet.store.files import FileStore
from nonet.store.responses import ResponseStore
from nonet.telemetry.ledger import Ledger
from nonet.telemetry.metrics import Metrics
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer

__all__ = ["ServedModel", "ServerState", "find_model"]

MOST_NAMED = 20  # models that an error message lists


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The model as clients see it."""

    name: str
    created: int
    max_model_len: int
    vocab_size: int
    hidden_size: int
    eos_ids: tuple[int, ...]
    generation: GenerationDefaults
    adapter_id: str = ""  # of an adapter over the model, which clients see as a model of its own


@dataclass(slots=True, kw_only=True)
class ServerState:
    """Owned by `nonet.server.run`; only `is_draining` and the set of active calls change."""

    config: ServerConfig
    engine: EngineClient
    tokenizer: Tokenizer
    template: ChatTemplate | None
    tools: ToolSupport
    thoughts: ThoughtSupport
    grammars: GrammarGate
    model: ServedModel
    keys: KeyRing
    hosts: HostList
    metrics: Metrics
    guard: StreamGuard
    pipeline: Pipeline  # the layers above the engine, and below them the engine
    database: Database | None  # None without a data_dir
    ledger: Ledger | None  # None where no layer books
    encoder: ServedEncoder | None = None  # beside the model
    adapter_dir: str | None = None  # below which adapters may be loaded over HTTP
    has_admin: bool = False  # an admin socket, and what is an operator's is done there only
    responses: ResponseStore  # turns of conversations
    completions: CompletionStore | None = None  # None without a data_dir, as the next two
    files: FileStore | None = None
    batches: BatchStore | None = None
    pool: ThreadPoolExecutor  # one thread: tokenising and templates of long prompts
    is_draining: bool = False
    active: set[object] = field(default_factory=set)  # calls that run, probes left out

    def models(self) -> list[ServedModel]:
        """The model, then the adapters over it."""
        adapters = self.engine.adapters.adapters
        return [self.model, *(self._adapted(adapter) for adapter in adapters)]

    def find_model(self, name: str | None) -> ServedModel:
        """The model, or the adapter of that name; NotFoundError when there is none."""
        return find_model(name, self.models())

    def _adapted(self, adapter: AdapterInfo) -> ServedModel:
        return replace(self.model, name=adapter.name, adapter_id=adapter.adapter_id)

    @property
    def is_ready(self) -> bool:
        return self.engine.is_ready and not self.is_draining


def find_model(name: str | None, models: Sequence[ServedModel]) -> ServedModel:
    """The one of that name, without a name the first; NotFoundError when there is none."""
    if name is None:
        return models[0]
    check_length("model", len(name), "model")
    for model in models:
        if model.name == name:
            return model
    names = ", ".join(repr(model.name) for model in models[:MOST_NAMED])
    raise ModelNotFoundError(f"no model {name!r} is served here; this server has {names}")
