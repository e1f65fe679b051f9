"""Bounds that only exist over HTTP, and the check of a decoded body against all bounds.

Fields of a request are in `nonet.core.limits.LIMITS`; the rows here concern bodies, headers and lists of the wire
format. Tests and documentation read both tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from nonet.core.errors import InvalidRequestError
from nonet.core.limits import LIMITS, Limit, check

__all__ = [
    "HTTP_LIMITS",
    "check_choices",
    "check_depth",
    "check_length",
    "check_metadata",
    "check_text",
    "check_token_ids",
    "maximum",
]

HTTP_LIMITS: dict[str, Limit] = {
    "header_bytes": Limit("int", 0, 65_536, doc="request line and headers together"),
    "header_s": Limit("int", 0, 10, doc="seconds from a request's first byte to its last header"),
    "body_s": Limit("int", 0, 60, doc="seconds from the last header to the last byte of the body"),
    "choices": Limit("int", 1, 1024, doc="prompts times n in one request"),
    "json_depth": Limit("int", 0, 64, doc="nesting of tools and other free-form objects"),
    "content_parts": Limit("list[str]", max_length=1024, doc="text parts in one message"),
    "embedding_inputs": Limit("list[str]", max_length=2048, doc="texts in one embedding request"),
    "items": Limit("list[str]", max_length=8192, doc="items in the input of one response"),
    "batch_lines": Limit("list[str]", max_length=50_000, doc="requests in one batch"),
    "file_bytes": Limit("int", 0, 200 * 2**20, doc="one uploaded file"),
    "upload_s": Limit("int", 0, 3600, doc="seconds for an uploaded file to arrive"),
    "message_batch_bytes": Limit("int", 0, 64 * 2**20, doc="the body that creates a message batch"),
    "metadata": Limit("list[str]", max_length=16, doc="entries of metadata"),
    "page": Limit("int", 1, 100, doc="entries in one page of a list"),
    "prompt_cache_key": Limit(
        "str", max_length=512, doc="accepted; there is one cache, so it routes nothing"
    ),
    "tools": Limit("list[str]", max_length=512, doc="tools in one chat"),
    "choice": Limit("list[str]", max_length=4096, doc="texts that an answer is chosen from"),
    "tool_calls": Limit("list[str]", max_length=512, doc="tool calls in one message"),
    "model": Limit("str", max_length=512, doc="a model's name"),
    "name": Limit("str", max_length=512, doc="names and ids inside messages"),
}


def maximum(field: str) -> int:
    """The largest value or length of a row that has one."""
    limit = HTTP_LIMITS[field]
    bound = limit.maximum if limit.maximum is not None else limit.max_length
    assert bound is not None
    return int(bound)


def check_length(field: str, size: int, param: str) -> None:
    """Raise when a list or string of `size` is longer than the row of `field` allows."""
    limit = HTTP_LIMITS.get(field) or LIMITS[field]
    if limit.max_length is not None and size > limit.max_length:
        raise InvalidRequestError(
            f"{param} has length {size}; at most {limit.max_length} is allowed", param
        )


def check_choices(num_prompts: int, n: int) -> None:
    check("n", n)
    if num_prompts * n > maximum("choices"):
        raise InvalidRequestError(
            f"{num_prompts} prompts times n {n} are {num_prompts * n} choices; at most "
            f"{maximum('choices')} are allowed in one request",
            "n",
        )


def check_depth(value: object, param: str) -> None:
    """Raise when lists and objects nest deeper than allowed; walks without recursion."""
    limit = maximum("json_depth")
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, dict):
            inner = list(item.values())
        elif isinstance(item, list):
            inner = item
        else:
            continue
        if depth > limit:
            raise InvalidRequestError(
                f"{param} nests deeper than {limit} levels; flatten it", param
            )
        pending += [(one, depth + 1) for one in inner]


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raise unless every id is one of the model's vocabulary."""
    check_length("prompt_ids", len(token_ids), param)
    if not token_ids:
        return
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequestError(
            f"{param} holds token id {wrong}; the vocabulary has ids 0 to {vocab_size - 1}", param
        )


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise when a client notes more, or longer, than allowed."""
    check_length("metadata", len(metadata), "metadata")
    for text in (*metadata, *metadata.values()):
        check_length("name", len(text), "metadata")
        check_text(text, "metadata")


def check_text(text: str, param: str) -> None:
    """Raise for a string that cannot be UTF-8 (a lone surrogate) or is over the limit of a text."""
    check("text", text, param=param)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                f"{param} holds half of a surrogate pair, which is no character", param
            ) from None
