"""The splits that byte-level BPE vocabularies were trained with, by their name in `tokenizer.ggml.pre`.

A GGUF file names its pre-tokenizer instead of holding it, so the patterns live here. Each name maps to a chain of
regular expressions: the first cuts the text into matches and gaps, the next cuts each of those, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import UnsupportedModelError

__all__ = ["PreTokenizer", "known_pre_tokenizers", "pre_tokenizer"]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One family's splits and habits.

    `whole_words`: a word that is itself a token is taken without merging. `nfc`: the models' own tokenizers bring text
    to Unicode form C first. `add_bos`: what a file that does not say means.
    """

    splits: tuple[str, ...]
    whole_words: bool = False
    nfc: bool = False
    add_bos: bool = False


def pre_tokenizer(name: str) -> PreTokenizer:
    """The family called `name`; UnsupportedModelError names the known ones."""
    found = _FAMILIES.get(name)
    if found is None:
        raise UnsupportedModelError(
            f"the file's tokenizer splits text by the rules {name!r} (tokenizer.ggml.pre), which nonet does not "
            f"have. {did_you_mean(name, known_pre_tokenizers())}"
        )
    return found


def known_pre_tokenizers() -> list[str]:
    return sorted(_FAMILIES)


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_QWEN35 = (
    _CONTRACTION
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    + _SLASH_TAIL
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}|" + _SLASH_TAIL
)
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_DIGITS_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_LLAMA3_FAMILY = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)

_FAMILIES: dict[str, PreTokenizer] = {
    "chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "command-r": _DIGITS_GPT2,
    "dbrx": PreTokenizer((_LLAMA3,)),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    ),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "falcon3": _LLAMA3_FAMILY,
    "glm4": PreTokenizer((_LLAMA3,), whole_words=True),
    "gpt-2": _PLAIN_GPT2,
    "gpt-4o": PreTokenizer((_GPT4O,)),
    "lfm2": _LLAMA3_FAMILY,
    "llama-bpe": _LLAMA3_FAMILY,
    "llama-v3": _LLAMA3_FAMILY,
    "llama3": _LLAMA3_FAMILY,
    "llama4": PreTokenizer((_GPT4O,)),
    "mpt": _PLAIN_GPT2,
    "olmo": _PLAIN_GPT2,
    "phi-2": _PLAIN_GPT2,
    "pixtral": _LLAMA3_FAMILY,
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "refact": _DIGITS_GPT2,
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "smollm": _DIGITS_GPT2,
    "stablelm2": PreTokenizer((_QWEN2,)),
    "starcoder": _DIGITS_GPT2,
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
}
