"""Strings that find fault with tokenizers, in groups, and the packaged models that they are tried on."""

from __future__ import annotations

import random

__all__ = ["REAL_MODELS", "text_samples"]

REAL_MODELS = ("smollm2", "qwen2.5-coder-0.5b", "gemma-3-270m")

_PROSE = [
    "", "a", "Hello world", "  leading", "trailing  ", "a  b   c    d", "don't I'll you're WE'VE it'S", "'s't're", "’s",
    "!!!???...---", "https://example.com/a_b-c?d=e&f=g#h", "$$\\frac{a}{b}$$", "_foo_bar", "CamelCaseHTTPServer2",
]  # fmt: skip
_SPACES = [
    " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n \n", " \t \t ", "\n" * 40 + "x", " " * 20 + "x",
    " " * 30 + "the", "a" * 100, "ab" * 60, "\u2028\u2029", "a\u00a0b\u2003c\u3000d",
]  # fmt: skip
_LONG_SPACES = [" " * n + "x" for n in (31, 32, 33, 40, 64, 100)]
_NUMBERS = [
    "1234567890",
    "3.14159e-10",
    "12 345 6789",
    "x1y22z333",
    "0x1F 0b101 1_000",
    "１２３ ²³ ½ Ⅷ ٣٤٥",
    "a  12",
]
_LANGUAGES = [
    "naïve café", "日本語のテキスト", "中文 混合 English", "한국어 문장", "العربية", "हिन्दी में", "ไทย",
    "Ω Å ﬁ", "İıSſ ǅ", "\u0d9a\u0dca\u200d\u0dbb",
]  # fmt: skip
_COMPOSED = [
    "e\u0301 de\u0301compose\u0301",
    "\u1100\u1161\u11a8",
    "Å Ω",
    "e" * 3 + "\u0301" * 4,
    "ﷺ",
]
_EMOJI = ["🙂", "👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪", "a🙂b🙃", "\u200d\u200b\ufeff", "😀" * 5]
_CODE = [
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\n", "if (a && b) {\r\n  c();\r\n}\r\n",
    "<table><tr><td>x</td></tr></table>", "SELECT * FROM t WHERE a='b';",
]  # fmt: skip
_SPECIAL = [
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|><|im_end|>", '<tool_call>{"a":1}</tool_call>',
    "<bos><eos><unk><pad><start_of_turn>user\n", "[PAD151935] [multimodal] <unused12>", "<|im_start", "|im_end|>",
    "<0x0A> <0xE2>",
]  # fmt: skip
_PIECES = [
    "a", "b", "e", "t", " ", "  ", "\n", "\t", "1", "23", ".", ",", "'", "-", "é", "ß", "ж", "中", "の", "🙂", "\u0301",
    "\u200d", "The", "ing", " the", "(", ")", "{", "}", "_", "<", "|", ">", "\u00a0", "١", "K", "s", "'s",
]  # fmt: skip
_RANGES = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x5FF), (0x900, 0xDFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0x1F300, 0x1FAFF),
]  # fmt: skip


def text_samples() -> dict[str, list[str]]:
    """Group -> strings."""
    source = random.Random(20_26)
    return {
        "prose": _PROSE,
        "spaces": _SPACES,
        "long spaces": _LONG_SPACES,
        "numbers": _NUMBERS,
        "languages": _LANGUAGES,
        "composed": _COMPOSED,
        "emoji": _EMOJI,
        "code": _CODE,
        "special": _SPECIAL,
        "single characters": [chr(code) for code in range(256)],
        "between letters": [f"a{chr(code)}b" for code in range(256)],
        "pieces": ["".join(source.choices(_PIECES, k=source.randint(1, 40))) for _ in range(500)],
        "scripts": [
            "".join(
                chr(source.randint(*source.choice(_RANGES))) for _ in range(source.randint(1, 30))
            )
            for _ in range(200)
        ],
    }
