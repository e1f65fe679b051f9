"""The asynchronous twin of `LLM`: the engine in its own process, outputs as they come.

async with AsyncLLM("smollm2") as llm:
    async for output in llm.generate("The capital of France is", SamplingParams(max_tokens=8)):
        print(output.outputs[0].text)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import msgspec

from nonet.config.load import from_options
from nonet.config.schema import Config
from nonet.core.errors import InvalidRequestError
from nonet.core.outputs import RequestOutput
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.client import EngineClient, EngineLaunch
from nonet.engine.prepare import Message, Prompt, PromptReader, default_params, resolve_config
from nonet.engine.results import PendingRequest

__all__ = ["AsyncLLM"]


class AsyncLLM:
    """Keywords are the options of `nonet.config.schema` by field name, as for `LLM`. Imports no torch here."""

    def __init__(
        self, model: str = "smollm2", *, config: Config | None = None, **options: object
    ) -> None:
        self.config = config or from_options({"model": model, **options})
        self.resolved, self.spec = resolve_config(self.config)
        self.client = EngineClient(EngineLaunch(config=msgspec.json.encode(self.resolved)))
        self.reader = PromptReader(Path(self.resolved.model_path))

    async def __aenter__(self) -> AsyncLLM:
        await self.client.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.client.close()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt (text or token ids); yields the result so far after every step that brought something.

        `adapter` is the name of one that `client.adapters` knows.

        Leaving the loop early aborts the request. It is the same object each time, and `finished` on the last.
        """
        wanted = params or default_params(self.spec.generation)
        request = Request(
            request_id=uuid4().hex,
            prompt_ids=self.reader.prompt_ids(prompt),
            params=wanted,
            eos_ids=self.spec.eos_ids,
            adapter_id=self._adapter_id(adapter),
        )
        tokenizer = None if self.resolved.dummy_weights else self.reader.tokenizer
        pending = PendingRequest(request, prompt if isinstance(prompt, str) else None, tokenizer)
        async for deltas in self.client.generate(request):
            for delta in deltas:
                if pending.feed(delta):
                    self.client.abort(request.request_id, delta.index)
            yield pending.output
            if pending.output.finished:
                return

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        adapter: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer a conversation; see `generate`."""
        ids = self.reader.chat_ids(messages, tools=tools, template_kwargs=template_kwargs)
        return self.generate(ids, params, adapter=adapter)

    def _adapter_id(self, name: str | None) -> str:
        if name is None:
            return ""
        known = self.client.adapters.find(name)
        if known is None:
            raise InvalidRequestError(f"no adapter {name!r} is loaded")
        return known.adapter_id
