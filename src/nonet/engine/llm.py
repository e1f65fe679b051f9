"""The offline API: a model in the caller's own process, text in and text out.

llm = LLM("smollm2")
print(llm.generate(["The capital of France is"], SamplingParams(temperature=0.0))[0].outputs[0].text)
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch

from nonet.config.load import from_options
from nonet.config.schema import Config
from nonet.core.errors import InvalidRequestError, UnavailableError
from nonet.core.messages import AdapterInfo, Answered, Command, LoadAdapter, UnloadAdapter
from nonet.core.outputs import RequestOutput, SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.assemble import build_engine
from nonet.engine.distributions import GivenText, Logits, distributions
from nonet.engine.engine import Engine
from nonet.engine.prepare import Message, Prompt, PromptReader, default_params, resolve_config
from nonet.engine.results import PendingRequest
from nonet.text.tokenizer import Tokenizer

__all__ = ["LLM", "Message", "Prompt"]

ANSWER_POLL_S = 0.002


class LLM:
    """A model, its tokenizer and an engine.

    Keywords are the options of `nonet.config.schema` by field name. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        model: str = "smollm2",
        *,
        config: Config | None = None,
        load_progress: Callable[[int, int], None] | None = None,
        **options: object,
    ) -> None:
        self.config = config or from_options({"model": model, **options})
        self.resolved, self.spec = resolve_config(self.config)
        self._reader = PromptReader(Path(self.resolved.model_path))
        self._engine: Engine | None = build_engine(self.resolved, self.spec, load_progress)
        self._adapters = {adapter.name: adapter for adapter in self.engine.info.adapters}
        self._requests_made = 0

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the model's memory and threads; another one may then be loaded in this process."""
        if self._engine is None:
            return
        self._engine.close()
        self._engine = None
        if self.resolved.device == "cuda":
            # A later collection would be too late for a model that is loaded next.
            gc.collect()
            torch.cuda.empty_cache()

    @property
    def engine(self) -> Engine:
        """The engine itself, step by step. UnavailableError once the model is closed."""
        if self._engine is None:
            raise UnavailableError("this model is closed; make another LLM")
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; token ids alone work without one."""
        return self._reader.tokenizer

    @property
    def adapters(self) -> list[AdapterInfo]:
        """The adapters that `generate` and `chat` may name."""
        return list(self._adapters.values())

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Offer the adapter in a directory that PEFT has written; InvalidRequestError says what is wrong with it."""
        answer = self._command(LoadAdapter(0, name, str(path)))
        assert answer.adapter is not None
        self._adapters[name] = answer.adapter

    def unload_adapter(self, name: str) -> None:
        """Take it back."""
        self._command(UnloadAdapter(0, name))
        del self._adapters[name]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt, all in one batch; outputs come in the order of the prompts.

        A prompt is text or token ids. `params` is one for all, or one per prompt; without it the model's own
        recommendations apply. `adapter` is the name of a loaded one, for all prompts or one (or None) per prompt.
        `on_progress` is called with (finished, all) requests.
        """
        listed = _as_list(prompts)
        each = self._params_for(listed, params)
        adapters = self._adapters_for(listed, adapter)
        pending = [self._pending(*one) for one in zip(listed, each, adapters, strict=True)]
        return self._run(pending, on_progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; a conversation is a list of {"role", "content"} messages."""
        conversations = _as_conversations(messages)
        pending = []
        for conversation, one in zip(
            conversations, self._params_for(conversations, params), strict=True
        ):
            ids = self._reader.chat_ids(conversation, tools=tools, template_kwargs=template_kwargs)
            pending.append(self._pending(ids, one, self._adapter_id(adapter)))
        return self._run(pending, None)

    def distributions(self, texts: Iterable[GivenText]) -> Iterator[Logits]:
        """The model's logits for each token of texts that it is given, in order; computed as the texts are taken."""
        return distributions(self.engine, texts)

    def _params_for(
        self, prompts: Sequence[object], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None:
            return [default_params(self.spec.generation)] * len(prompts)
        if isinstance(params, SamplingParams):
            return [params] * len(prompts)
        if len(params) != len(prompts):
            raise InvalidRequestError(
                f"{len(params)} sampling parameters were given for {len(prompts)} prompts; give one, or one for each"
            )
        return list(params)

    def _adapters_for(
        self, prompts: Sequence[Prompt], adapter: str | Sequence[str | None] | None
    ) -> list[str]:
        if adapter is None or isinstance(adapter, str):
            return [self._adapter_id(adapter)] * len(prompts)
        if len(adapter) != len(prompts):
            raise InvalidRequestError(
                f"{len(adapter)} adapters were given for {len(prompts)} prompts; give one, or one for each"
            )
        return [self._adapter_id(name) for name in adapter]

    def _adapter_id(self, name: str | None) -> str:
        if name is None:
            return ""
        known = {adapter.name: adapter.adapter_id for adapter in self.adapters}
        if name not in known:
            raise InvalidRequestError(
                f"no adapter {name!r} is loaded; loaded: {', '.join(sorted(known)) or 'none'}"
            )
        return known[name]

    def _command(self, command: Command) -> Answered:
        """Carry it out and wait for its answer."""
        self.engine.command(command)
        while True:
            for answer in self.engine.answers():
                if answer.error is not None:
                    raise InvalidRequestError(answer.error)
                return answer
            time.sleep(ANSWER_POLL_S)

    def _pending(self, prompt: Prompt, params: SamplingParams, adapter_id: str) -> PendingRequest:
        self._requests_made += 1
        request = Request(
            request_id=f"llm-{self._requests_made}",
            prompt_ids=self._reader.prompt_ids(prompt),
            params=params,
            eos_ids=self.spec.eos_ids,
            adapter_id=adapter_id,
        )
        tokenizer = (
            None if self.resolved.dummy_weights else self.tokenizer
        )  # made-up tokens have no text
        return PendingRequest(request, prompt if isinstance(prompt, str) else None, tokenizer)

    def _run(
        self, pending: list[PendingRequest], on_progress: Callable[[int, int], None] | None
    ) -> list[RequestOutput]:
        by_id = {one.request.request_id: one for one in pending}
        for one in pending:
            self.engine.add(one.request)
        left = len(pending)
        try:
            while left:
                for delta in self.engine.step():
                    left -= self._take(by_id[delta.request_id], delta)
                    if on_progress is not None and delta.finish_reason is not None:
                        on_progress(len(pending) - left, len(pending))
        except BaseException:
            self.engine.abort(list(by_id))
            raise
        return [one.output for one in pending]

    def _take(self, pending: PendingRequest, delta: SequenceDelta) -> int:
        """Give the delta to its request; 1 when that finishes it."""
        was_finished = pending.output.finished
        if pending.feed(delta):
            self.engine.abort([delta.request_id], delta.index)
        return int(pending.output.finished and not was_finished)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _as_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    if messages and isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]
