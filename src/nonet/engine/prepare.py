"""What comes before an engine, without torch: find the model, settle its options, turn text into token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from nonet.config.machine import Machine
from nonet.config.resolve import resolve
from nonet.config.resolved import Resolved
from nonet.config.schema import Config
from nonet.core.catalogue import parse_spec
from nonet.core.model_spec import GenerationDefaults, ModelSpec
from nonet.core.sampling_params import SamplingParams
from nonet.engine.speculation import read_speculation
from nonet.kernels import KERNELS
from nonet.kv.format import KV_FORMATS
from nonet.kv.prune import PRUNERS
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.scheduler.batching import BATCHINGS
from nonet.scheduler.policy import POLICIES
from nonet.speculate import DRAFT_LENGTHS
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer, load_tokenizer
from nonet.weights.packaged import resolve_model
from nonet.weights.spec import read_spec

__all__ = ["Message", "Prompt", "PromptReader", "default_params", "resolve_config"]

Prompt = str | Sequence[int]
Message = Mapping[str, object]


def resolve_config(config: Config) -> tuple[Resolved, ModelSpec]:
    """Find the model, read its shape, and settle every automatic choice. Reads no weights."""
    _check_names(config)
    path = resolve_model(config.model.model, config.model.revision)
    spec = read_spec(path)
    entries = config.cache.kv_format
    plan = resolve(
        config,
        spec,
        Machine.detect(),
        WEIGHT_FORMATS,
        model_path=str(path),
        kv_format=None if entries == "auto" else KV_FORMATS.build(entries),
        speculation=read_speculation(config, path),
    )
    return plan, spec


def _check_names(config: Config) -> None:
    """ConfigError for a technique that does not exist; for its knobs too where they are known without torch."""
    POLICIES.build(config.scheduler.policy)
    BATCHINGS.build(config.scheduler.batching)
    DRAFT_LENGTHS.build(config.speculation.draft_length)
    if config.runtime.kernels != "auto":
        KERNELS.require(config.runtime.kernels)
    if config.cache.kv_prune is not None:
        PRUNERS.require(parse_spec(config.cache.kv_prune)[0])


def default_params(known: GenerationDefaults) -> SamplingParams:
    """Sampling as the checkpoint recommends it."""
    return SamplingParams(
        temperature=1.0 if known.temperature is None else known.temperature,
        top_p=1.0 if known.top_p is None else known.top_p,
        top_k=0 if known.top_k is None else known.top_k,
        min_p=0.0 if known.min_p is None else known.min_p,
        repetition_penalty=1.0 if known.repetition_penalty is None else known.repetition_penalty,
    )


class PromptReader:
    """Prompts and conversations to token ids, with the model's own tokenizer and chat template.

    Both are read from the model's files when first needed, so that token ids alone work without them.
    """

    def __init__(self, model_path: Path) -> None:
        self._path = model_path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._path)

    @cached_property
    def template(self) -> ChatTemplate:
        """UnsupportedModelError when the model has none."""
        return ChatTemplate.from_tokenizer(self.tokenizer)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def chat_ids(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> list[int]:
        """The conversation as the template writes it, ending where the assistant begins to speak."""
        text = self.template.render(
            messages, tools=tools, add_generation_prompt=True, template_kwargs=template_kwargs
        )
        return self.tokenizer.encode(text, add_special=False)
