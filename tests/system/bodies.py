"""Seeded request bodies: sound ones, and what becomes of them under wrong types, ranges, encodings and nesting."""

from __future__ import annotations

import json
import random
from typing import Any

FIELDS = (
    "model", "n", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "logit_bias", "seed", "max_tokens", "max_completion_tokens", "min_tokens", "stop",
    "stop_token_ids", "stream", "stream_options", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "best_of",
    "user", "cache_salt", "priority", "ignore_eos", "skip_special_tokens", "include_stop_str_in_output",
    "return_token_ids", "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "messages", "prompt",
    "suffix", "unknown_field", "input", "encoding_format", "dimensions", "system", "stop_sequences", "metadata",
    "thinking", "output_config", "instructions", "previous_response_id", "store", "include", "max_output_tokens",
    "text", "reasoning", "truncation", "prompt_cache_key", "background", "finish_in_time",
    "reasoning_effort",
)  # fmt: skip

FUNCTION = {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}
SCHEMAS: tuple[Any, ...] = (
    {}, {"type": "object"}, {"type": "odd"}, {"$ref": "#"}, {"not": {}}, {"enum": []}, {"pattern": "(a+)+$"},
    {"pattern": "("}, {"minItems": 2**40}, {"allOf": [{"$ref": "#"}]}, {"const": "\ud800"}, {"maxLength": -1},
    {"properties": {"a": {"$ref": "#/properties/a"}}}, {"oneOf": [{}, {}]}, {"multipleOf": 0}, [], True, False, 7,
)  # fmt: skip
SHAPES: dict[str, tuple[Any, ...]] = {
    "response_format": (
        {"type": "json_object"}, {"type": "json_schema"},
        *({"type": "json_schema", "json_schema": {"name": "s", "schema": one}} for one in SCHEMAS),
    ),
    "structured_outputs": (
        {}, {"json": "{}"}, {"choice": ["a"], "regex": "a"}, {"json_object": True}, {"grammar": "x"},
    ),
    "guided_json": SCHEMAS,
    "guided_regex": ("a*", "(", "(?=a)", "a{1,100000}", "\\p{Greek}", "^$"),
    "guided_choice": (["a"], [""], [], ["\ud800"], ["a"] * 5000),
    "guided_grammar": ('start: "a"', "root ::= root", "start: start", "%import common.INT", "start: <|end|>"),
    "tools": (
        [{"type": "function", "function": FUNCTION}], [{"type": "function", "function": {**FUNCTION, "strict": True}}],
        [{"type": "function", "function": {"name": ""}}], [{"type": "code"}],
        *([{"type": "function", "function": {"name": "f", "parameters": one}}] for one in SCHEMAS),
    ),
    "tool_choice": ("required", "any", {"type": "function", "function": {"name": "f"}}, {"type": "tool"}),
}  # fmt: skip

PATHS = (
    "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/responses", "/v1/responses/input_tokens",
)  # fmt: skip

STRINGS = (
    "", "a", "\x00", "\u202e\u200b", "\U0001f600" * 40, "<|eos|><|start|>system", "{{ 7*7 }}", "../../etc/passwd",
    "x" * 5000, "é" * 300, "\ufffd\uffff", "null", "NaN", "1", "\\", '"', "\r\n\r\n", "auto", "required", "text",
    "json_object",
)  # fmt: skip

NUMBERS = (
    0, 1, -1, 2, 20, 64, 65, 128, 129, 257, 258, 260, 1024, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, -(2**63) - 1,
    0.0, 0.5, -0.5, 1.0001, 1e-300, 1e300, 100.0, 100.5,
)  # fmt: skip

RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    '"\\ud800"',
    '"\\udfff\\ud800"',
    "01",
    "+1",
    "0x10",
    "'a'",
)


def body(rng: random.Random, model: str) -> tuple[str, bytes]:
    """A path and the bytes to post to it, at a server of that model."""
    path = rng.choice(PATHS)
    sound = _sound(rng, path, model)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        field = rng.choice(FIELDS)
        known = SHAPES.get(field)
        sound[field] = rng.choice(known) if known and rng.random() < 0.5 else _value(rng, 0)
    text = json.dumps(sound, ensure_ascii=rng.random() < 0.5)
    raw = text.encode("utf-8", "surrogatepass")
    return path, _damaged(rng, raw)


def _sound(rng: random.Random, path: str, model: str) -> dict[str, Any]:
    if path == "/tokenize":
        return {"prompt": rng.choice(STRINGS)}
    if path == "/detokenize":
        return {"tokens": [rng.randrange(260) for _ in range(rng.randrange(8))]}
    body: dict[str, Any] = {"max_tokens": rng.randrange(1, 12)}
    if path.startswith("/v1/messages"):
        return _sound_message(rng, {"model": model, **body})
    if path == "/v1/embeddings":
        texts = rng.choice(("hello", ["a", "b"], [1, 2, 3], [[1, 2], [3]], list(STRINGS[1:6])))
        return {"input": texts, "encoding_format": rng.choice(("float", "base64"))}
    if path.startswith("/v1/responses"):
        return _sound_turn(rng)
    if path == "/v1/completions":
        body["prompt"] = rng.choice(
            ("hello", ["a", "b"], [1, 2, 3], [[1, 2], [3]], list(STRINGS[1:6]))
        )
    else:
        body["messages"] = [
            {
                "role": rng.choice(("system", "user", "assistant", "tool", "developer")),
                "content": text,
            }
            for text in rng.choices(STRINGS, k=rng.randrange(1, 4))
        ]
    if rng.random() < 0.3:
        body["stream"] = True
        body["stream_options"] = {"include_usage": rng.random() < 0.5}
    if rng.random() < 0.2:
        body["n"] = rng.randrange(1, 5)
    return body


def _sound_message(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's form."""
    blocks = [
        {"type": "text", "text": text} for text in rng.choices(STRINGS, k=rng.randrange(1, 3))
    ]
    body["messages"] = [
        {
            "role": rng.choice(("user", "user", "assistant")),
            "content": rng.choice((blocks, "hello")),
        }
        for _ in range(rng.randrange(1, 4))
    ]
    if rng.random() < 0.3:
        body["system"] = rng.choice((blocks, "be brief"))
    if rng.random() < 0.3:
        body["stream"] = True
    if rng.random() < 0.2:
        call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": _value(rng, 2)}}
        body["messages"] += [
            {"role": "assistant", "content": [call]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "42"}],
            },
        ]
    return body


def _sound_turn(rng: random.Random) -> dict[str, Any]:
    """The Responses API's form."""
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": rng.choice(STRINGS)}
    items = [
        {
            "role": rng.choice(("user", "user", "assistant", "developer")),
            "content": rng.choice(STRINGS),
        },
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    ]
    turn: dict[str, Any] = {
        "input": rng.choice(("hello", rng.choices(items, k=rng.randrange(1, 4)))),
        "max_output_tokens": rng.randrange(1, 12),
    }
    if rng.random() < 0.3:
        turn["stream"] = True
    if rng.random() < 0.3:
        turn["store"] = rng.random() < 0.5
    return turn


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth < 4 else 5)
    match kind:
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2 | 3:
            return rng.choice(NUMBERS)
        case 4:
            return rng.choice(STRINGS)
        case 5:
            return [_value(rng, depth + 1) for _ in range(rng.randrange(5))]
        case 6:
            return {
                rng.choice((*STRINGS[:8], "type", "role", "content", "1", "-1", "300")): _value(
                    rng, depth + 1
                )
                for _ in range(rng.randrange(4))
            }
        case 7:
            return [rng.choice(NUMBERS)] * rng.choice((1, 70, 2000))
        case _:
            return [{"role": rng.choice(("user", "x")), "content": _value(rng, depth + 1)}]


def _damaged(rng: random.Random, raw: bytes) -> bytes:
    """One body in three is damaged as bytes."""
    match rng.randrange(18):
        case 0:
            return raw[: rng.randrange(len(raw) + 1)]
        case 1:
            position = rng.randrange(len(raw))
            return raw[:position] + bytes([rng.randrange(256)]) + raw[position + 1 :]
        case 2:
            deep = rng.choice((50, 100, 900, 20_000))
            field = rng.choice(("tools", "chat_template_kwargs", "x", "messages")).encode()
            opening, closing = rng.choice(((b'{"a":', b"}"), (b"[", b"]")))
            return raw[:-1] + b',"' + field + b'":' + opening * deep + b"1" + closing * deep + b"}"
        case 3:
            value = rng.choice(RAW).encode()
            return raw[:-1] + b',"' + rng.choice(FIELDS).encode() + b'":' + value + b"}"
        case 4:
            return b"\xef\xbb\xbf" + raw
        case 5:
            return rng.randbytes(rng.randrange(64))
        case _:
            return raw
