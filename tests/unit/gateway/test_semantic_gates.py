"""The gates of the semantic cache: what may share an answer, what may not, and that each gate is needed."""

from __future__ import annotations

from collections import Counter

import pytest

from nonet.bench.adversarial import KINDS, Pair, made_from, pairs
from nonet.gateway.cache.semantic.evidence import RATES, Evidence
from nonet.gateway.cache.semantic.gates import GATES, differences, marks_of, refusal
from nonet.gateway.cache.semantic.partition import Partition, Question, Rules
from nonet.gateway.cache.semantic.settings import ALL_GATES

SUITE = pairs()


def may_share(asked: str, kept: str) -> bool:
    one, two = marks_of(asked), marks_of(kept)
    return refusal(one, two) is None and not differences(one, two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("How do I reset my password?", "how to reset the password"),
        ("Could you please tell me the opening hours?", "tell me the opening hour"),
        ("What's the capital of France?", "what is the capital of france"),
        ("I can't log in", "I cannot log in"),
        ("Where can I buy a mobile?", "where could I purchase a cellphone"),
        ("A ticket for twenty five people", "a ticket for 25 people"),
        ("It costs $1,000.50", "it costs 1000.5 dollars"),
        ("Is it 5 km away?", "is it 5 kilometres away"),
        ("Is the office open in Jan?", "Is the office open in January?"),
        ("Explain `x == y` please", "explain `x == y`"),
        ("Which cards do you accept?", "Which card do you accept?"),
    ],
)
def test_the_same_question_in_other_words(one: str, two: str) -> None:
    assert may_share(one, two)
    assert may_share(two, one)


@pytest.mark.parametrize(
    ("gate", "one", "two"),
    [
        ("negation", "Is the card working?", "Is the card not working?"),
        ("negation", "I can pay", "I can't pay"),
        ("negation", "Pizza with cheese", "Pizza without cheese"),
        ("numbers", "Transfer 50 to Bob", "Transfer 500 to Bob"),
        ("numbers", "Call 007", "Call 7"),
        ("numbers", "Add three and four", "Add four and three"),
        ("numbers", "Meet at 10:30", "Meet at 10:45"),
        ("units", "Walk 5 miles", "Walk 5 km"),
        ("units", "Pay 5€", "Pay $5"),
        ("units", "Meet at 9am", "Meet at 9pm"),
        ("dates", "Open on Monday?", "Open on Tuesday?"),
        ("dates", "Rain today?", "Rain tomorrow?"),
        ("names", "Who is Alice?", "Who is Bob?"),
        ("code", "What does get_user do", "What does set_user do"),
        ("code", "Is a == b", "Is a != b"),
        ("code", "Why `foo`", "Why `bar`"),
        ("code", "open /etc/hosts", "open /etc/passwd"),
        ("directions", "Pay before the trip", "Pay after the trip"),
        ("directions", "Is it more than rent", "Is it less than rent"),
    ],
)
def test_each_gate_sees_its_kind(gate: str, one: str, two: str) -> None:
    assert not GATES[gate](marks_of(one), marks_of(two))
    assert not GATES[gate](marks_of(two), marks_of(one))


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ("enable the alarm", "disable the alarm", {"+enable", "-disable"}),
        ("dog bites man", "man bites dog", {"dog>bite", "dog>man", "bite>man"}),
        ("from Rome to Oslo", "from Oslo to Rome", {"rome>to", "rome>oslo", "to>oslo"}),
        ("card", "the card please", set()),
        ("bye bye", "bye", {"+bye"}),
    ],
)
def test_differences(one: str, two: str, expected: set[str]) -> None:
    assert differences(marks_of(one), marks_of(two)) == expected


def test_long_texts_that_are_turned_round() -> None:
    words = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(200)]
    assert differences(marks_of(" ".join(words)), marks_of(" ".join(reversed(words)))) == {">"}
    assert differences(marks_of(" ".join(words)), marks_of(" ".join(words))) == set()


def test_a_name_may_be_written_small() -> None:
    assert may_share("Flights to Oslo", "flights to oslo")
    assert not may_share("Flights to Oslo", "flights to Rome")


# --- pairs made to deceive ---------------------------------------------------------------------------------------


def serving(gates: frozenset[str]) -> Partition:
    """A partition that has its proof, and trusts every entry at every similarity."""
    proof = Evidence(0.01, state="serving", bets=[1e9] * len(RATES), recent=[True] * 1000)
    return Partition(Rules(delta=0.99, gates=gates), evidence=proof)


def served(suite: list[Pair], gates: frozenset[str]) -> Counter[str]:
    """Pairs that would be hits, by kind."""
    found: Counter[str] = Counter()
    for pair in suite:
        partition = serving(gates)
        partition.add(Question(b"kept", pair.kept))
        look = partition.look(marks_of(pair.asked), [(partition.questions[b"kept"], 0.999)])
        found[pair.kind] += look.fits
    return found


def test_the_suite_is_large_and_of_every_kind() -> None:
    kinds = Counter(pair.kind for pair in SUITE)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 150
    assert len(SUITE) >= 2000
    assert len({(pair.kept, pair.asked) for pair in SUITE}) == len(SUITE)
    assert all(pair.kept != pair.asked for pair in SUITE)


def test_no_pair_is_served() -> None:
    assert served(SUITE, ALL_GATES).total() == 0


def test_without_gates_every_pair_is_served() -> None:
    """The check above must be able to fail: similarity alone would have served them."""
    some = SUITE[::10]
    assert served(some, frozenset()).total() == len(some)


@pytest.mark.parametrize(
    ("gate", "kind"),
    [
        ("negation", "negation"),
        ("numbers", "numbers"),
        ("units", "units"),
        ("dates", "dates"),
        ("code", "code"),
        ("directions", "direction"),
        ("words", "antonym"),
        ("words", "names"),
        ("words", "language"),
        ("reversal", "reversal"),
    ],
)
def test_a_gate_that_is_removed_is_missed(gate: str, kind: str) -> None:
    """The mutants: without the gate, pairs of its kind are served."""
    some = [pair for pair in SUITE if pair.kind == kind][:60]
    assert served(some, ALL_GATES)[kind] == 0
    assert served(some, ALL_GATES - {gate})[kind] > 0


def test_a_name_is_never_learned_to_be_harmless() -> None:
    """The names gate is for what the words gate could be taught."""
    for gates, expected in ((ALL_GATES, False), (ALL_GATES - {"names"}, True)):
        partition = serving(gates)
        partition.add(Question(b"kept", "Please ask Alice"))
        near = [(partition.questions[b"kept"], 0.99)]
        look = partition.look(marks_of("Please ask Bob"), near)
        if look.question is not None:
            partition.learn(look, True)
        assert partition.look(marks_of("Please ask Bob"), near).fits is expected


def test_rules_on_given_texts() -> None:
    made = made_from(["Is it open?", "I have 2 cards", "fly from Rome to Oslo", "no rule fits no"])
    assert [(pair.kind, pair.asked) for pair in made] == [
        ("negated text", "Is not it open?"),
        ("negated text", "I have not 2 cards"),
        ("renumbered text", "I have 3 cards"),
        ("turned text", "fly from Oslo to Rome"),
    ]
    assert served(made, ALL_GATES).total() == 0
