"""What a quality task is given and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.statistics import Interval
from nonet.core.given_text import GivenText
from nonet.core.outputs import Completion, RequestOutput
from nonet.core.sampling_params import SamplingParams

__all__ = ["Measure", "Spelling", "Subject", "Task", "TaskResult"]


class Spelling(Protocol):
    """What tasks need of a tokenizer (`nonet.text.tokenizer.Tokenizer`)."""

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...


class Subject(Protocol):
    """A model in one configuration; `nonet.engine.llm.LLM` behind the names that tasks use."""

    @property
    def spelling(self) -> Spelling: ...

    @property
    def max_model_len(self) -> int: ...

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[RequestOutput]:
        """Complete prompts of token ids, batched as the engine likes."""
        ...

    def ask(self, questions: Sequence[str], params: Sequence[SamplingParams]) -> list[Completion]:
        """Answers to single messages, through the chat template where the model has one."""
        ...

    def distributions(self, texts: Iterable[GivenText]) -> Iterator[npt.NDArray[np.float32]]: ...


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one configuration, with a 95 % interval over its items.

    `items` are what the figure is the mean of (or, with `is_exponent`, the exponent of the mean of): the same items in
    the same order in every configuration, so that differences can be taken item by item.
    """

    name: str
    interval: Interval
    items: list[float]
    is_exponent: bool = False


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one configuration made of a task."""

    measures: list[Measure]
    data: str  # where the items come from
    sha256: str  # of the items: equal digests are equal work
    details: dict[str, object] = {}
    notes: list[str] = []


class Task(Protocol):
    """Built from a spec string; its knobs are fields of a frozen `Config` inside the class.

    `measure` is called once for each configuration, the reference first. What it keeps of the reference for the others
    goes to the store; a task that compares nothing but its items leaves it alone.
    """

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult: ...
