"""Pairs of questions that sound alike and want different answers, by rule: what a semantic cache must not confuse.

Each rule changes one thing in a sentence: it negates, swaps a number, name, unit, date, direction, antonym or
identifier, turns two things round, asks for another language or another person. The word lists are made here and are
not those of any cache, so that a cache is not asked what it was told.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["KINDS", "Pair", "made_from", "pairs"]


@dataclass(frozen=True, slots=True)
class Pair:
    """The answer to `kept` would be wrong for `asked`."""

    kind: str
    kept: str
    asked: str


def _words(text: str, mark: str | None = None) -> list[str]:
    return text.split(mark)


CITIES = _words(
    """Boston Chicago Denver Lisbon Nairobi Oslo Lima Hanoi Cairo Seattle Kyoto Munich Warsaw
    Quito Perth Dakar Austin Geneva Prague Manila"""
)
PEOPLE = _words(
    """Alice Bob Carol David Erin Frank Grace Heidi Ivan Judy Mallory Niaj Olivia Peggy Rupert
    Sybil Trent Victor Walter Xenia"""
)
FIRMS = _words("Amazon Google Netflix Spotify Toyota Siemens Nestle Boeing Adobe Intel Oracle Sony")
THINGS = _words(
    """laptop passport mortgage router invoice parcel subscription fridge bicycle guitar visa
    deposit loan ticket contract camera"""
)
MONEY = _words("dollars euros yen francs pesos rupees kroner zloty")
MEASURES = ["cups", "grams", "ounces", "liters", "pounds", "tablespoons", "pints", "kilograms"]
LENGTHS = ["miles", "kilometers", "meters", "feet", "inches", "yards", "centimeters"]
TIMES = ["seconds", "minutes", "hours", "days", "weeks", "months", "years"]
MONTHS = _words(
    """January February March April May June July August September October November December"""
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
WHEN = ["today", "tomorrow", "yesterday", "tonight", "this morning", "next week", "last week"]
LANGUAGES = _words("French German Spanish Italian Polish Swahili Korean Turkish")
NUMBERS = [
    "2",
    "3",
    "7",
    "12",
    "15",
    "40",
    "99",
    "250",
    "1,000",
    "3.5",
    "0.1",
    "five",
    "nine",
    "twenty",
    "eleven",
]
ANTONYMS = _words(
    """enable/disable open/close increase/decrease start/stop lock/unlock show/hide add/remove
    connect/disconnect install/uninstall mute/unmute subscribe/unsubscribe freeze/unfreeze
    activate/deactivate import/export upload/download follow/unfollow accept/reject
    approve/deny attach/detach encrypt/decrypt raise/lower push/pull buy/sell lend/borrow
    allow/forbid join/leave expand/collapse save/discard win/lose encode/decode
    compress/extract pin/unpin"""
)
ADJECTIVES = _words(
    """cheapest/priciest fastest/slowest oldest/newest safest/riskiest largest/smallest
    best/worst easiest/hardest lightest/heaviest nearest/farthest hottest/coldest
    tallest/shortest earliest/latest"""
)
DIRECTIONS = _words(
    """before/after above/below inside/outside with/without over/under into/from towards/against
    until/since"""
)
AMOUNTS = _words(
    "all/none always/never every/some minimum/maximum most/least more/fewer both/neither"
)
PERSONS = ["my/your", "his/her", "my/their", "your/his", "my/her"]
ASKING = ["who/when", "where/why", "when/where", "why/how", "who/where", "when/why"]
CODE = _words(
    """get_user set_user; readFile writeFile; list.append list.extend; == !=; < >; && ||; --force --dry-run; i++ i--;
HTTP_GET HTTP_PUT; utf-8 utf-16; /etc/hosts /etc/passwd; push() pop(); x+1 x-1; np.min np.max; git-pull git-push;
int32 int64; foo.bar foo.baz; fooBar fooBaz; a[0] a[1]; config.yml config.toml""",
    ";",
)
ACTIONS = [
    "cancel",
    "renew",
    "insure",
    "return",
    "register",
    "replace",
    "track",
    "repair",
    "rent",
    "ship",
]
BEFORE_NOT = re.compile(r"\b(is|are|was|were|do|does|did|can|could|should|will|has|have)\b", re.I)
A_NUMBER = re.compile(r"\b\d+\b")
FROM_TO = re.compile(r"\bfrom (\w{3,}) to (\w{3,})\b", re.I)

Pick = random.Random


def pairs(seed: int = 0, each: int = 200) -> list[Pair]:
    """Up to `each` different pairs of every kind, from templates."""
    rng = random.Random(seed)
    found: dict[tuple[str, str], Pair] = {}
    for kind, rule in KINDS.items():
        made = 0
        for _ in range(each * 20):
            kept, asked = rule(rng)
            if rng.random() < 0.3:  # much of what is typed has no capitals
                kept, asked = kept.lower(), asked.lower()
            if kept != asked and (kept, asked) not in found:
                found[kept, asked] = Pair(kind, kept, asked)
                made += 1
            if made == each:
                break
    return list(found.values())


def made_from(texts: Iterable[str]) -> list[Pair]:
    """The rules that need no template, on texts of real users: a negation, another number, from and to turned round."""
    made = []
    for text in texts:
        if BEFORE_NOT.search(text) and not re.search(r"n't|\bnot\b|\bnever\b|\bno\b", text, re.I):
            made.append(Pair("negated text", text, BEFORE_NOT.sub(r"\1 not", text, count=1)))
        if A_NUMBER.search(text):
            other = A_NUMBER.sub(lambda found: str(int(found.group()) + 1), text, count=1)
            made.append(Pair("renumbered text", text, other))
        turned = FROM_TO.sub(r"from \2 to \1", text, count=1)
        if turned.lower() != text.lower():
            made.append(Pair("turned text", text, turned))
    return made


def _two(rng: Pick, words: Sequence[str]) -> tuple[str, str]:
    one, two = rng.sample(list(words), 2)
    return one, two


def _either(rng: Pick, words: Sequence[str]) -> tuple[str, str]:
    """Both sides of an entry, in any order."""
    entry = rng.choice(list(words))
    one, two = entry.split() if " " in entry.strip() else entry.split("/")
    return (one, two) if rng.random() < 0.5 else (two, one)


def _filled(
    rng: Pick, templates: Sequence[str], swap: tuple[str, str], **more: str
) -> tuple[str, str]:
    """One template with each of two words in the place of `_`."""
    template = rng.choice(list(templates))
    for name, value in more.items():
        template = template.replace(f"{{{name}}}", value)
    return template.replace("_", swap[0]), template.replace("_", swap[1])


def _negation(rng: Pick) -> tuple[str, str]:
    thing, person, act = rng.choice(THINGS), rng.choice(PEOPLE), rng.choice(ACTIONS)
    return rng.choice(
        [
            (f"Why is my {thing} ready?", f"Why is my {thing} not ready?"),
            (f"Should I {act} the {thing}?", f"Should I not {act} the {thing}?"),
            (f"Can {person} {act} a {thing}?", f"Can't {person} {act} a {thing}?"),
            (f"Why did {person} {act} the {thing}?", f"Why didn't {person} {act} the {thing}?"),
            (f"How to {act} a {thing} with a receipt", f"How to {act} a {thing} without a receipt"),
            (f"What if I {act} the {thing}?", f"What if I never {act} the {thing}?"),
            (f"Which {thing} can {person} {act}?", f"Which {thing} can {person} no longer {act}?"),
        ]
    )


def _antonym(rng: Pick) -> tuple[str, str]:
    if rng.random() < 0.5:
        templates = ["Which {city} hotel is the _?", "What is the _ {thing} in {city}?"]
        swap = _either(rng, ADJECTIVES)
    else:
        templates = [
            "How do I _ the {thing} service?",
            "_ notifications for my {thing}",
            "Is it safe to _ a {thing} in {city}?",
        ]
        swap = _either(rng, ANTONYMS)
    return _filled(rng, templates, swap, city=rng.choice(CITIES), thing=rng.choice(THINGS))


def _numbers(rng: Pick) -> tuple[str, str]:
    templates = [
        "What is _ percent of 640?",
        "Split a bill of _ between {name} and me",
        "Can I return a {thing} after _ days?",
        "Set a timer for _ minutes",
        "What are the _ best parks in {city}?",
    ]
    more = {"name": rng.choice(PEOPLE), "thing": rng.choice(THINGS), "city": rng.choice(CITIES)}
    return _filled(rng, templates, _two(rng, NUMBERS), **more)


def _names(rng: Pick) -> tuple[str, str]:
    templates, words = rng.choice(
        [
            (
                ["What is the weather in _?", "Book a {thing} courier in _", "Flights to _ please"],
                CITIES,
            ),
            (
                ["When was _ born?", "Send the {thing} to _", "Is _ allowed to rent a {thing}?"],
                PEOPLE,
            ),
            (["What is the share price of _?", "Who founded _?", "Is _ hiring in {city}?"], FIRMS),
        ]
    )
    more = {"thing": rng.choice(THINGS), "city": rng.choice(CITIES)}
    return _filled(rng, templates, _two(rng, words), **more)


def _units(rng: Pick) -> tuple[str, str]:
    number = rng.choice(["2", "3", "10", "25", "a hundred"])
    templates, words = rng.choice(
        [
            (["How many calories are in {n} _ of rice?", "Convert {n} _ of flour"], MEASURES),
            (["How long does it take to walk {n} _?", "A rope of {n} _ weighs what?"], LENGTHS),
            (["Remind me in {n} _ about the {thing}", "Is a {thing} of {n} _ too old?"], TIMES),
            (["How much is {n} _ in gold?", "Is {n} _ enough for a {thing}?"], MONEY),
        ]
    )
    return _filled(rng, templates, _two(rng, words), n=number, thing=rng.choice(THINGS))


def _dates(rng: Pick) -> tuple[str, str]:
    templates, words = rng.choice(
        [
            (["Is {city} crowded in _?", "Which {thing} offers end in _?"], MONTHS),
            (["Is the {city} museum open on _?", "Move my {thing} meeting to _"], DAYS),
            (["Will it rain in {city} _?", "Did my {thing} arrive _?"], WHEN),
            (
                ["Who won the cup in _?", "What did a {thing} cost in _?"],
                [str(y) for y in range(1990, 2025)],
            ),
        ]
    )
    more = {"thing": rng.choice(THINGS), "city": rng.choice(CITIES)}
    return _filled(rng, templates, _two(rng, words), **more)


def _code(rng: Pick) -> tuple[str, str]:
    templates = [
        "What does _ do in this {thing} script?",
        "Explain `_` to {name}",
        "Why does _ fail on the {thing} page?",
        "Is _ safe with threads, {name} asks",
    ]
    more = {"thing": rng.choice(THINGS), "name": rng.choice(PEOPLE)}
    template = rng.choice(templates)
    for name, value in more.items():
        template = template.replace(f"{{{name}}}", value)
    one, two = _either(rng, CODE)
    place = template.index("_")
    before, after = template[:place], template[place + 1 :]
    return before + one + after, before + two + after


def _reversal(rng: Pick) -> tuple[str, str]:
    template, words = rng.choice(
        [
            ("Convert 10 {} to {}", MONEY),
            ("Trains from {} to {} on a weekday", CITIES),
            ("Is {} bigger than {}?", CITIES),
            ("{} owes {} money, who pays?", PEOPLE),
            ("Did {} beat {} at chess?", PEOPLE),
            ("Will {} acquire {}?", FIRMS),
            ("Translate this from {} into {}", LANGUAGES),
            ("Should I trade a {} for a {}?", THINGS),
            ("How many {} are there in {}?", LENGTHS),
        ]
    )
    one, two = _two(rng, words)
    return template.format(one, two), template.format(two, one)


def _direction(rng: Pick) -> tuple[str, str]:
    templates = [
        "Should I eat _ the {city} marathon?",
        "Is the {thing} kept _ the cabinet?",
        "Rules for travelling _ a {thing}",
        "What happens _ the {thing} deadline?",
    ]
    more = {"thing": rng.choice(THINGS), "city": rng.choice(CITIES)}
    return _filled(rng, templates, _either(rng, DIRECTIONS), **more)


def _amount(rng: Pick) -> tuple[str, str]:
    templates = ["Do _ of the {thing} plans include {city}?", "Is the _ {thing} fee refundable?"]
    more = {"thing": rng.choice(THINGS), "city": rng.choice(CITIES)}
    return _filled(rng, templates, _either(rng, AMOUNTS), **more)


def _person(rng: Pick) -> tuple[str, str]:
    templates = [
        "Where is _ {thing}?",
        "What is _ name on the {thing}?",
        "Can I use _ {thing} in {city}?",
    ]
    more = {"thing": rng.choice(THINGS), "city": rng.choice(CITIES)}
    return _filled(rng, templates, _either(rng, PERSONS), **more)


def _asking(rng: Pick) -> tuple[str, str]:
    templates = [
        "_ did the {thing} arrive?",
        "_ can {name} renew the {thing}?",
        "_ is {city} so famous?",
    ]
    more = {"thing": rng.choice(THINGS), "city": rng.choice(CITIES), "name": rng.choice(PEOPLE)}
    return _filled(rng, templates, _either(rng, ASKING), **more)


def _language(rng: Pick) -> tuple[str, str]:
    templates = [
        "Describe a {thing} in _",
        "How do you say {thing} in _?",
        "Answer in _: what is a {thing}?",
    ]
    return _filled(rng, templates, _two(rng, LANGUAGES), thing=rng.choice(THINGS))


KINDS: dict[str, Callable[[Pick], tuple[str, str]]] = {
    "negation": _negation,
    "antonym": _antonym,
    "numbers": _numbers,
    "names": _names,
    "units": _units,
    "dates": _dates,
    "code": _code,
    "reversal": _reversal,
    "direction": _direction,
    "amount": _amount,
    "person": _person,
    "question word": _asking,
    "language": _language,
}
