"""May an answer to one question be given to another? What no similarity can tell is read from the words.

A text becomes marks: its negations, numbers, units, dates, directions, code, and its other words, all in one order.
Each gate compares one kind of mark and refuses when it differs. What else is different is listed: words that one side
has alone, and words whose order is turned round, as in a reversal. Nothing of that list may be there unless the entry
has learned, from answers that were verified, that it does no harm.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from nonet.gateway.cache.semantic.words import (
    CONTRACTIONS,
    DATES,
    DIRECTIONS,
    FILLERS,
    NEGATIONS,
    NUMBERS,
    PHRASES,
    SAME,
    UNITS,
)

__all__ = ["GATES", "LEARNING_GATES", "Marks", "differences", "marks_of", "refusal"]

MAX_SHARED = 64  # marks whose pairs are looked at one by one
MAX_PHRASE = max(len(phrase.split()) for phrase in PHRASES)

BLOCK = re.compile(r"```.*?(?:```|\Z)|`[^`]*`", re.DOTALL)
# What is inside a word only in code, paths, addresses and models of things.
CODE = re.compile(r"[_/\\=<>{}()\[\]#@|^~*+&]|::|\.\w|\w:\w|[a-z][A-Z]|^--?[A-Za-z]|^[-%!?:;]+$")
DIGITS = re.compile(r"([$€£¥₹]?)([+-]?\d+(?:[.,:]\d+)*)(%|°[cCfF]?|[A-Za-z]*)")
ORDINAL = frozenset({"st", "nd", "rd", "th"})
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
EDGE = "\"'“”‘’«».,;:!?…"
END_OF_SENTENCE = (".", "!", "?", "\n", ":")


@dataclass(frozen=True, slots=True)
class Marks:
    """`order` has every mark as (kind, form); the kinds are negation, number, unit, date, code, direction and word."""

    order: tuple[tuple[str, str], ...]
    names: frozenset[str]  # words that were written with a capital inside a sentence
    forms: dict[str, tuple[str, ...]]  # of each kind that occurs, in order

    def of(self, kind: str) -> tuple[str, ...]:
        return self.forms.get(kind, ())


def marks_of(text: str) -> Marks:
    order: list[tuple[str, str]] = []
    names: set[str] = set()
    words: list[str] = []  # since the last mark that is none
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    for kind, form, is_name in _tokens(text):
        if kind == "word":
            if is_name:
                names.add(_folded(form.lower()))
            words.append(form.lower())
        else:
            order += _marks_of_words(words)
            words = []
            order.append((kind, form))
    order += _marks_of_words(words)
    marks = tuple(_joined_numbers(order))
    forms: dict[str, tuple[str, ...]] = {}
    for kind, form in marks:
        forms[kind] = (*forms.get(kind, ()), form)
    return Marks(marks, frozenset(names.intersection(forms.get("word", ()))), forms)


def _negation(asked: Marks, kept: Marks) -> bool:
    return asked.of("negation") == kept.of("negation")


def _numbers(asked: Marks, kept: Marks) -> bool:
    return asked.of("number") == kept.of("number")


def _units(asked: Marks, kept: Marks) -> bool:
    return asked.of("unit") == kept.of("unit")


def _dates(asked: Marks, kept: Marks) -> bool:
    return asked.of("date") == kept.of("date")


def _names(asked: Marks, kept: Marks) -> bool:
    """Capitals are often left out, so a name must be among the other's words, however written."""
    return not (asked.names or kept.names) or (
        asked.names <= _forms(kept) and kept.names <= _forms(asked)
    )


def _code(asked: Marks, kept: Marks) -> bool:
    return asked.of("code") == kept.of("code")


def _directions(asked: Marks, kept: Marks) -> bool:
    return sorted(asked.of("direction")) == sorted(kept.of("direction"))


GATES: dict[str, Callable[[Marks, Marks], bool]] = {
    "negation": _negation,
    "numbers": _numbers,
    "units": _units,
    "dates": _dates,
    "names": _names,
    "code": _code,
    "directions": _directions,
}

# What these find may be learned to be harmless, entry by entry.
LEARNING_GATES = frozenset({"words", "reversal"})


def refusal(asked: Marks, kept: Marks, gates: Collection[str] = frozenset(GATES)) -> str | None:
    """The first of the gates that refuses, None when all let the answer to `kept` be given to `asked`."""
    for name, lets_pass in GATES.items():
        if name in gates and not lets_pass(asked, kept):
            return name
    return None


def differences(
    asked: Marks, kept: Marks, gates: Collection[str] = LEARNING_GATES
) -> frozenset[str]:
    """`+word` for what only the asked text has, `-word` for the kept one's, `one>two` for what is turned round."""
    found: set[str] = set()
    if "words" in gates:
        mine, theirs = asked.of("word"), kept.of("word")
        if mine != theirs:
            more, fewer = Counter(mine), Counter(theirs)
            found |= {f"+{word}" for word in more - fewer} | {f"-{word}" for word in fewer - more}
    if "reversal" in gates:
        found |= _turned(asked, kept)
    return frozenset(found)


def _turned(asked: Marks, kept: Marks) -> set[str]:
    """Pairs of marks that both texts have, in another order."""
    if asked.order == kept.order:
        return set()
    here, there = _places(asked), _places(kept)
    shared = sorted(here.keys() & there.keys(), key=here.__getitem__)
    order = [there[mark] for mark in shared]
    if order == sorted(order):
        return set()
    if len(shared) > MAX_SHARED:
        return {">"}
    return {
        f"{shared[one][0][1]}>{shared[two][0][1]}"
        for one in range(len(shared))
        for two in range(one + 1, len(shared))
        if order[one] > order[two]
    }


def _places(marks: Marks) -> dict[tuple[tuple[str, str], int], int]:
    """Where each mark is, its first, second ... occurrence apart."""
    seen: Counter[tuple[str, str]] = Counter()
    places = {}
    for place, mark in enumerate(marks.order):
        places[mark, seen[mark]] = place
        seen[mark] += 1
    return places


def _forms(marks: Marks) -> set[str]:
    return {form for _, form in marks.order}


def _tokens(text: str) -> Iterator[tuple[str, str, bool]]:
    """Code, numbers with their units, and words with whether they are names."""
    place = 0
    for block in BLOCK.finditer(text):
        yield from _prose(text[place : block.start()])
        yield "code", block.group().strip("`").strip(), False
        place = block.end()
    yield from _prose(text[place:])


def _prose(text: str) -> Iterator[tuple[str, str, bool]]:
    is_start = True
    for match in re.finditer(r"\S+", text):
        chunk = match.group()
        bare = chunk.strip(EDGE)
        if bare.startswith("(") or (bare.endswith(")") and "(" not in bare):
            bare = bare.strip("()").strip(EDGE)
        number = DIGITS.fullmatch(bare)
        if number is not None:
            yield from _number(*number.groups())
        elif bare and CODE.search(bare) and not _is_prose(bare):
            yield "code", bare, False
        else:
            for word in _pieces(bare):
                is_acronym = len(word) > 1 and word.isupper()
                yield (
                    "word",
                    word,
                    word[0].isupper() and word != "I" and (not is_start or is_acronym),
                )
                is_start = False
        is_start = chunk.endswith(END_OF_SENTENCE) or "\n" in text[match.end() : match.end() + 2]


def _is_prose(chunk: str) -> bool:
    """A remark in brackets that sticks to its word, as in card(s)."""
    return re.fullmatch(r"[^\W\d_]+\(e?s\)", chunk) is not None


def _pieces(chunk: str) -> list[str]:
    """Words of a chunk with hyphens; digits inside a word, as in 4x, stay with it."""
    if re.search(r"\d", chunk):
        return [chunk]
    return WORD.findall(chunk)


def _number(sign: str, digits: str, tail: str) -> Iterator[tuple[str, str, bool]]:
    if ":" in digits or digits.count(".") > 1:
        yield "number", digits, False
    else:
        whole = re.sub(r",(?=\d{3}(\D|$))", "", digits).replace(",", ".").lstrip("+")
        yield "number", _plain(whole), False
    for unit in (sign, tail.lower()):
        if unit and unit not in ORDINAL:
            yield "unit", UNITS.get(unit, unit), False


def _plain(number: str) -> str:
    """1.50 is 1.5; a leading zero, as in a code, stays."""
    return number.rstrip("0").rstrip(".") if "." in number else number


def _marks_of_words(words: list[str]) -> list[tuple[str, str]]:
    """Marks of a run of words in lower case."""
    spelt: list[str] = []
    for word in words:
        spelt += _spelt_out(word).split()
    return [_mark(word) for word in _without_phrases(spelt) if word not in FILLERS]


def _spelt_out(word: str) -> str:
    if word in CONTRACTIONS:
        return CONTRACTIONS[word]
    for ending, full in (("n't", " not"), ("'ll", " will"), ("'d", " would")):
        if word.endswith(ending):
            return word.removesuffix(ending) + full
    return re.sub(r"'(s|re|m|ve)$", "", word)


def _without_phrases(words: list[str]) -> Iterator[str]:
    place = 0
    while place < len(words):
        for length in range(MAX_PHRASE, 1, -1):
            phrase = " ".join(words[place : place + length])
            if phrase in PHRASES and place + length <= len(words):
                yield from PHRASES[phrase].split()
                place += length
                break
        else:
            yield words[place]
            place += 1


def _mark(word: str) -> tuple[str, str]:
    if word in NUMBERS:
        return "number", str(NUMBERS[word])
    for kind, table in (
        ("negation", NEGATIONS),
        ("unit", UNITS),
        ("date", DATES),
        ("direction", DIRECTIONS),
    ):
        if word in table:
            return kind, table[word]
    return "word", _folded(word)


def _folded(word: str) -> str:
    """Without a plural's ending, and the first of its synonyms."""
    if word in SAME:
        return SAME[word]
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "xes", "ches", "shes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    return SAME.get(word, word)


def _joined_numbers(marks: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Twenty and five in a row are 25."""
    waiting: str | None = None
    for kind, form in marks:
        if waiting is not None:
            if kind == "number" and form.isdigit() and 0 < int(form) < 10:
                yield "number", str(int(waiting) + int(form))
                waiting = None
                continue
            yield "number", waiting
            waiting = None
        if kind == "number" and form.isdigit() and 20 <= int(form) < 100 and int(form) % 10 == 0:
            waiting = form
        else:
            yield kind, form
    if waiting is not None:
        yield "number", waiting
