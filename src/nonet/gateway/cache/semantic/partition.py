"""The entries that one kind of ask may be answered from, and what was learned about them. No clock, no disk, no model.

`look` says what becomes of a question, given the entries that are nearest; `learn` takes how a verified one ended. An
entry is added only for a question whose answer none had, so questions that share an answer teach one entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nonet.gateway.cache.semantic.belief import Belief, Pool
from nonet.gateway.cache.semantic.evidence import Evidence
from nonet.gateway.cache.semantic.gates import Marks, differences, marks_of, refusal

__all__ = ["Look", "Partition", "Question", "Rules"]

MAX_TRIALS = 256  # kept of one entry
MAX_HARMLESS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What an operator sets."""

    delta: float
    confidence: float = 0.95
    min_similarity: float = 0.7
    gates: frozenset[str]


@dataclass(slots=True, eq=False)
class Question:
    """An entry: a question whose answer is kept under `key`."""

    key: bytes
    text: str
    known_marks: Marks | None = None
    made_s: float = 0.0
    trials: list[tuple[float, bool]] = field(default_factory=list)
    harmless: set[str] = field(default_factory=set)  # differences that did not change the answer
    belief: Belief | None = None

    @property
    def marks(self) -> Marks:
        """Read from the text when they are first needed: a server that starts may have many entries."""
        if self.known_marks is None:
            self.known_marks = marks_of(self.text)
        return self.known_marks


@dataclass(frozen=True, slots=True)
class Look:
    """The entry that a question is closest to, or none. `fits`: gates, words and threshold let it be a hit."""

    question: Question | None = None
    similarity: float = 0.0
    differences: frozenset[str] = frozenset()
    is_covered: bool = False  # every difference is known to be harmless
    fits: bool = False


class Partition:
    """Questions with their beliefs, the pool that is their common prior, and the evidence."""

    def __init__(self, rules: Rules, tenant: str = "", evidence: Evidence | None = None) -> None:
        self.tenant = tenant
        self.questions: dict[bytes, Question] = {}
        self.evidence = evidence or Evidence(rules.delta, rules.confidence)
        self._rules = rules
        self.pool = Pool()

    def add(self, question: Question) -> None:
        question.belief = Belief(question.trials, self.pool)
        self.questions[question.key] = question

    def remove(self, key: bytes) -> None:
        question = self.questions.pop(key)
        assert question.belief is not None
        question.belief.forget(self.pool)

    def look(self, marks: Marks, near: Iterable[tuple[Question, float]]) -> Look:
        """`near` is from the most alike on. The first entry whose differences are harmless is taken, else the first."""
        rules = self._rules
        first = Look()
        for question, similarity in near:
            if similarity < rules.min_similarity:
                break
            if refusal(marks, question.marks, rules.gates) is not None:
                continue
            found = differences(marks, question.marks, rules.gates)
            if found <= question.harmless:
                assert question.belief is not None
                chance = question.belief.false_chance(similarity, self.pool)
                return Look(question, similarity, found, True, chance <= rules.delta)
            if first.question is None:
                first = Look(question, similarity, found)
        return first

    def learn(self, look: Look, is_right: bool) -> None:
        """The model has answered, and its answer was the entry's or was not."""
        question = look.question
        assert question is not None
        if look.fits:
            self.evidence.add(is_right)
        if question.key not in self.questions:  # gone meanwhile
            return
        if is_right:
            if len(question.harmless) < MAX_HARMLESS:
                question.harmless |= look.differences
        else:
            question.harmless -= look.differences
        if look.is_covered:
            assert question.belief is not None
            question.belief.learn(look.similarity, is_right, self.pool)
            question.trials = [*question.trials, (look.similarity, is_right)][-MAX_TRIALS:]
