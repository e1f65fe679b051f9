"""The offline API: a model in the caller's own process, text in and text out.

llm = LLM("smollm2")
print(llm.generate(["The capital of France is"], SamplingParams(temperature=0.0))[0].outputs[0].text)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from nonet.config.load import from_options
from nonet.config.schema import Config
from nonet.core.errors import InvalidRequestError
from nonet.core.outputs import RequestOutput, SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.assemble import build_engine, resolve_config
from nonet.engine.engine import Engine
from nonet.engine.results import PendingRequest
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["LLM", "Message", "Prompt"]

Prompt = str | Sequence[int]
Message = Mapping[str, object]


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
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        self.engine: Engine = build_engine(self.resolved, self.spec, load_progress)
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
        """Give back the model's memory and threads."""
        self.engine.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """Read from the model's files when first asked for, so that token ids alone work without one."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(Path(self.resolved.model_path))
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt, all in one batch; outputs come in the order of the prompts.

        A prompt is text or token ids. `params` is one for all, or one per prompt; without it the model's own
        recommendations apply. `on_progress` is called with (finished, all) requests.
        """
        listed = _as_list(prompts)
        each = self._params_for(listed, params)
        pending = [self._pending(prompt, one) for prompt, one in zip(listed, each, strict=True)]
        return self._run(pending, on_progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; a conversation is a list of {"role", "content"} messages."""
        conversations = _as_conversations(messages)
        pending = []
        for conversation in conversations:
            ids = self.chat_prompt(conversation, tools=tools, template_kwargs=template_kwargs)
            pending.append(self._pending(ids, params or self._default_params()))
        return self._run(pending, None)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> list[int]:
        """The token ids that the chat template makes of a conversation."""
        if self._template is None:
            self._template = ChatTemplate.from_tokenizer(self.tokenizer)
        text = self._template.render(
            messages, tools=tools, add_generation_prompt=True, template_kwargs=template_kwargs
        )
        return self.tokenizer.encode(text, add_special=False)

    def _default_params(self) -> SamplingParams:
        known = self.spec.generation
        return SamplingParams(
            temperature=1.0 if known.temperature is None else known.temperature,
            top_p=1.0 if known.top_p is None else known.top_p,
            top_k=0 if known.top_k is None else known.top_k,
            min_p=0.0 if known.min_p is None else known.min_p,
            repetition_penalty=1.0
            if known.repetition_penalty is None
            else known.repetition_penalty,
        )

    def _params_for(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None:
            return [self._default_params()] * len(prompts)
        if isinstance(params, SamplingParams):
            return [params] * len(prompts)
        if len(params) != len(prompts):
            raise InvalidRequestError(
                f"{len(params)} sampling parameters were given for {len(prompts)} prompts; give one, or one for each"
            )
        return list(params)

    def _pending(self, prompt: Prompt, params: SamplingParams) -> PendingRequest:
        text = prompt if isinstance(prompt, str) else None
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._requests_made += 1
        request = Request(
            request_id=f"llm-{self._requests_made}",
            prompt_ids=ids,
            params=params,
            eos_ids=self.spec.eos_ids,
        )
        return PendingRequest(request, text, self._tokenizer_or_none())

    def _tokenizer_or_none(self) -> Tokenizer | None:
        """None only for made-up weights without a tokenizer beside them."""
        return None if self.resolved.dummy_weights and self._tokenizer is None else self.tokenizer

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
