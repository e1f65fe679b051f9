"""Adaptive length: as many drafts as are worth their time, and none where none is.

Idea: a step's worth is the tokens it is expected to bring by the time it takes. Both are known: how often drafts stood,
for each sequence, and how long steps of each size take on this machine, measured at start. All candidate tokens are
taken in the order of their chance to be reached and to stand, as long as that raises tokens per second. Where not even
a sure draft would pay, as in large batches that are bound by arithmetic, the proposer is not asked at all.
A step with drafts must wait for the host, which makes them; one without may be planned while another runs. So the
first takes the device's time and the host's, the second the larger of both, and where drafts do not make up for that
nothing waits. What is guessed meanwhile, every few steps, comes too late to be used and shows when waiting would pay
again.
Reference: expected tokens per step as in arXiv 2211.17192, section 3.3; goodput as the measure as in TurboSpec
(arXiv 2406.14066).
Cost: microseconds a step; about a second at start to time steps of a dozen sizes.
Good for: all proposers, mixed work, batches that come and go.
Conflicts: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nonet.core.errors import ConfigError
from nonet.core.step import NewSequence
from nonet.speculate.base import (
    NO_DRAFT,
    Context,
    Draft,
    Needs,
    Outcome,
    Proposer,
    Services,
    no_gap,
)
from nonet.speculate.cost import StepCost

__all__ = ["AdaptiveLength", "AdaptiveProposer"]


class AdaptiveLength:
    """Wraps any proposer."""

    @dataclass(frozen=True, slots=True)
    class Config:
        gain: float = 0.02  # share by which drafts must raise the expected tokens per second
        probe_every: int = 64  # steps without a draft after which one is tried, rarer if it fails

        def __post_init__(self) -> None:
            if self.gain < 0 or self.probe_every < 1:
                raise ConfigError(
                    f"adaptive: gain is {self.gain:g} and probe_every {self.probe_every}; give a gain of at least 0 "
                    "and at least 1 step"
                )

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or self.Config()

    def wrap(self, inner: Proposer) -> Proposer:
        return AdaptiveProposer(self._config, inner)


class AdaptiveProposer(Proposer):
    """A proposer that asks another one for less, and hands on less."""

    def __init__(self, config: AdaptiveLength.Config, inner: Proposer) -> None:
        self._config = config
        self._inner = inner
        self._needs = replace(inner.needs, step_costs=True, pauses=True)
        self._rates: dict[int, _Rate] = {}
        self._usual = _Rate(*PRIOR)
        self._target: StepCost | None = None
        self._second: StepCost | None = None  # None where proposals are free
        self._seconds: list[float] = []  # of the target's steps, by their number of tokens
        self._gap_now_s = no_gap
        self._gap_s = 0.0  # what steps with drafts take besides the device's time
        self._pays = True  # the last step's guesses, made in time or not, were worth a wait
        self._best: dict[int, bool] = {}  # number of sequences -> whether sure drafts would pay
        self._idle_steps = 0
        self._num_probes = 0
        self._unseen_steps = 0
        self._num_misses = 0  # guesses in a row that were not worth a wait

    @property
    def needs(self) -> Needs:
        return self._needs

    def start(self, services: Services) -> None:
        assert services.target_cost is not None, "step costs were asked for"
        self._target, self._second = services.target_cost, services.second_cost
        self._gap_now_s = services.gap_s
        self._seconds = [services.target_cost(size) for size in range(TABLED)]
        self._inner.start(services)

    def add(self, slot: int, sequence: NewSequence) -> None:
        self._rates[slot] = _Rate(memory=OWN_MEMORY)
        self._inner.add(slot, sequence)

    def remove(self, slot: int) -> None:
        self._rates.pop(slot, None)
        self._inner.remove(slot)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            trials = min(outcome.num_accepted + 1, outcome.num_drafted)
            self._rates[outcome.slot].add(outcome.num_accepted, trials)
            self._usual.add(outcome.num_accepted, trials)
        self._inner.observe(outcomes)

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        self._look_at_gap()
        sampled = [context for context in contexts if context.is_sampled]
        is_late = bool(sampled) and all(context.is_late for context in sampled)
        if is_late and not self._should_look(len(sampled)):
            return [NO_DRAFT] * len(contexts)
        depth = self._depth(sampled)
        is_probe = not depth and self._should_probe(sampled)
        drafts = self._inner.propose(_with_room(contexts, 1 if is_probe else depth))
        if not is_probe:
            drafts = self._cut(contexts, drafts, len(sampled), depth)
        if sampled:
            is_free = self._second is None
            self._pays = any(d.token_ids for d in drafts) if is_free else is_probe or depth > 0
            self._num_misses = 0 if self._pays else self._num_misses + 1
        return drafts

    def proposes_for(self, num_seqs: int) -> bool:
        self._look_at_gap()
        return (self._pays or not self._gap_s) and self._could_pay(num_seqs)

    def largest_batch(self) -> int:
        """Most sequences in a step for which sure drafts would pay; for people."""
        self._look_at_gap()
        return max((size for size in range(1, TABLED) if self._could_pay(size)), default=0)

    def _depth(self, sampled: Sequence[Context]) -> int:
        """How many tokens to ask for, for each sequence."""
        num_seqs = len(sampled)
        if not num_seqs:
            return self._needs.max_drafts  # prompts under way, which may be prepared
        if not self._could_pay(num_seqs):
            return 0
        if self._second is None:
            return self._needs.max_drafts  # proposals are free, and are cut afterwards
        rates = [self._rate(context.slot) for context in sampled]
        expected, reached = float(num_seqs), [1.0] * num_seqs
        best, best_worth = 0, (1 + self._config.gain) * num_seqs / self._plain_s(num_seqs)
        for depth in range(1, self._needs.max_drafts + 1):
            reached = [chance * rate for chance, rate in zip(reached, rates, strict=True)]
            expected += sum(reached)
            taken = self._drafted_s(num_seqs * (1 + depth)) + self._drafting_s(num_seqs, depth)
            if expected / taken > best_worth:
                best, best_worth = depth, expected / taken
        if best:
            self._idle_steps = self._num_probes = 0
        return best

    def _should_look(self, num_seqs: int) -> bool:
        """Whether to guess although it is too late; ever more rarely while no guess was worth a wait."""
        if self._second is not None:
            return True  # nothing is run for it
        if not self._could_pay(num_seqs):
            return False
        self._unseen_steps += 1
        if self._unseen_steps < 1 << min(self._num_misses, MOST_DOUBLINGS):
            return False
        self._unseen_steps = 0
        return True

    def _should_probe(self, sampled: Sequence[Context]) -> bool:
        """Whether to draft one token, for its rate may have risen; the pause doubles while it has not."""
        if self._second is None or not sampled or not self._could_pay(len(sampled)):
            return False  # free proposals learn from every token
        self._idle_steps += 1
        if self._idle_steps < self._config.probe_every << min(self._num_probes, 4):
            return False
        if not all(context.is_late for context in sampled):  # else the next step waits for it
            self._idle_steps = 0
            self._num_probes += 1
        return True

    def _could_pay(self, num_seqs: int) -> bool:
        """Whether drafts that nearly always stand would raise tokens per second."""
        found = self._best.get(num_seqs)
        if found is None:
            least = (1 + self._config.gain) * num_seqs / self._plain_s(num_seqs)
            found = any(
                num_seqs
                * (1 + MOST_LIKELY * depth)
                / (self._drafted_s(num_seqs * (1 + depth)) + self._drafting_s(num_seqs, depth))
                > least
                for depth in range(1, self._needs.max_drafts + 1)
            )
            self._best[num_seqs] = found
        return found

    def _cut(
        self, contexts: Sequence[Context], drafts: list[Draft], num_seqs: int, depth: int
    ) -> list[Draft]:
        """Of all drafts, the tokens most likely to be reached and to stand, while each adds to tokens per second."""
        chances: list[tuple[float, int, int]] = []  # chance, negated; place in the draft; draft
        for number, (context, draft) in enumerate(zip(contexts, drafts, strict=True)):
            if not draft.token_ids:
                continue
            chance = 1.0
            likelihoods = draft.likelihoods or [self._rate(context.slot)] * len(draft.token_ids)
            for place, likelihood in enumerate(likelihoods):
                chance *= min(likelihood, MOST_LIKELY)
                chances.append((-chance, place, number))
        if not chances:
            return drafts
        chances.sort()
        spent = self._drafting_s(num_seqs, depth)
        expected = float(num_seqs)
        taken, worth = 0, expected / (self._plain_s(num_seqs) + spent)
        if not spent:
            worth *= 1 + self._config.gain
        for count, (chance, _, _) in enumerate(chances, start=1):
            expected -= chance
            here = expected / (self._drafted_s(num_seqs + count) + spent)
            if here > worth:
                taken, worth = count, here
        lengths = [0] * len(drafts)
        for _, _, number in chances[:taken]:
            lengths[number] += 1
        return [draft.cut(length) for draft, length in zip(drafts, lengths, strict=True)]

    def _rate(self, slot: int) -> float:
        """How often a draft of this sequence stands."""
        own, usual = self._rates[slot], self._usual
        rate = (own.hits + OWN_WEIGHT * usual.hits / usual.trials) / (own.trials + OWN_WEIGHT)
        return min(rate, MOST_LIKELY)

    def _look_at_gap(self) -> None:
        """Small changes are passed over, so that what follows from the gap is worked out rarely."""
        gap_s = self._gap_now_s()
        if abs(gap_s - self._gap_s) > GAP_CHANGE * self._gap_s:
            self._gap_s = gap_s
            self._best.clear()

    def _plain_s(self, num_seqs: int) -> float:
        """Of a step without drafts, which the next need not wait for."""
        return max(self._step_s(num_seqs), self._gap_s)

    def _drafted_s(self, num_tokens: int) -> float:
        """Of a step with drafts, and of the wait for what becomes of them."""
        return self._step_s(num_tokens) + self._gap_s

    def _step_s(self, num_tokens: int) -> float:
        if num_tokens < TABLED:
            return self._seconds[num_tokens]
        assert self._target is not None, "not started"
        return self._target(num_tokens)

    def _drafting_s(self, num_seqs: int, depth: int) -> float:
        """Each draft token is one pass of the second model over all sequences."""
        return depth * self._second(num_seqs) if self._second is not None else 0.0


TABLED = 513  # steps of fewer tokens are looked up in a table
MOST_LIKELY = 0.97  # nothing is surer than this
MOST_DOUBLINGS = 3  # of the steps between two looks
GAP_CHANGE = 0.1  # share by which the gap must change to count
SHARED_MEMORY = 0.99  # per step with drafts
PRIOR = (7.0, 10.0, SHARED_MEMORY)  # hits and trials before anything was seen
OWN_MEMORY = 0.9
OWN_WEIGHT = 3.0  # trials for which the usual rate counts in a sequence's own


def _with_room(contexts: Sequence[Context], most: int) -> Sequence[Context]:
    if all(context.room <= most for context in contexts):
        return contexts
    return [replace(context, room=min(context.room, most)) for context in contexts]


@dataclass(slots=True)
class _Rate:
    """Hits and trials, the older ones fading."""

    hits: float = 0.0
    trials: float = 0.0
    memory: float = 1.0

    def add(self, hits: int, trials: int) -> None:
        self.hits = self.hits * self.memory + hits
        self.trials = self.trials * self.memory + trials
