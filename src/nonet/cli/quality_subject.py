"""An `LLM` behind the names that quality tasks use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nonet.cli.terminal import progress
from nonet.core.given_text import GivenText
from nonet.core.outputs import Completion, RequestOutput
from nonet.core.sampling_params import SamplingParams
from nonet.engine.distributions import Logits
from nonet.engine.llm import LLM
from nonet.text.tokenizer import Tokenizer

__all__ = ["LLMSubject"]


class LLMSubject:
    """A `bench.quality.base.Subject`."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    @property
    def spelling(self) -> Tokenizer:
        return self._llm.tokenizer

    @property
    def max_model_len(self) -> int:
        return self._llm.resolved.max_model_len

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[RequestOutput]:
        with progress("generating", "requests") as show:
            return self._llm.generate(prompts, params, on_progress=show)

    def ask(self, questions: Sequence[str], params: Sequence[SamplingParams]) -> list[Completion]:
        if self._llm.tokenizer.chat_template is None:
            outputs = self._llm.generate(questions, params)
        else:
            conversations = [[{"role": "user", "content": text}] for text in questions]
            outputs = self._llm.chat(conversations, params)
        return [one.outputs[0] for one in outputs]

    def distributions(self, texts: Iterable[GivenText]) -> Iterator[Logits]:
        return self._llm.distributions(texts)
