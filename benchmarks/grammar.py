"""Do answers keep to their grammar? Every schema of jsonschemabench and every tool case, over HTTP as a client asks.

    NONET_DATA=... python benchmarks/grammar.py --model smollm2 --out benchmarks/<date>-<device>-grammar
    NONET_DATA=... python benchmarks/grammar.py --model random --out ...

`random` is a model of two small layers with made-up weights and a vocabulary of 512 tokens, sampled at temperature 1:
its logits say nothing, so whatever is right in its answers the grammar made right. Every answer that ends by itself
(finish_reason stop) is judged by the jsonschema package; answers cut by --max-tokens are counted apart, and with
--finish-in-time the server is asked to leave none. A schema that
the server refuses with 400 counts as one that failed. Tool cases are asked with tool_choice required, and each call's
arguments are judged against the parameters of the tool it names.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import referencing
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nonet.bench.serving import running_server
from nonet.bench.workload import data_folder

RANDOM = "random"
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "torch_dtype": "float32", "eos_token_id": 0,
}  # fmt: skip
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
BFCL = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_parallel",
        "live_parallel_multiple")  # fmt: skip
# The types of BFCL's functions are Python's.
TYPES = {"dict": "object", "float": "number", "tuple": "array"}
ATTEMPTS = 6  # for a server that is busy (429), as clients have it
MOST_SCHEMA = 4000  # characters of a schema that the prompt shows; the grammar holds all of it


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `schemas` maps what is judged to its schema: a tool's name, or "" for the answer."""

    group: str
    name: str
    body: dict[str, Any]
    schemas: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`end` is the finish reason, or the HTTP status of a refusal. `fault` says what is wrong with an ended answer."""

    group: str
    name: str
    end: str
    is_valid: bool
    tokens: int
    fault: str = ""


def main(given: Sequence[str] | None = None) -> None:
    arguments = _arguments(given)
    with tempfile.TemporaryDirectory() as folder:
        is_random = arguments.model == RANDOM
        if is_random:
            _write_random_model(Path(folder))
        settings = {
            "NONET_MODEL_MODEL": folder if is_random else arguments.model,
            "NONET_MODEL_DUMMY_WEIGHTS": str(is_random).lower(),
            "NONET_MODEL_MAX_MODEL_LEN": "8192",
            "NONET_MODEL_SERVED_NAME": "served",
            "NONET_CACHE_MEMORY_GIB": "3",
            "NONET_SCHEDULER_MAX_NUM_SEQS": str(arguments.concurrency),
        }
        if arguments.threads is not None:
            settings["NONET_RUNTIME_THREADS"] = str(arguments.threads)
        cases = [case for part in arguments.parts for case in PARTS[part](is_random)]
        cases = cases[arguments.first :][: arguments.cases]
        with running_server(settings) as url:
            began = time.perf_counter()
            outcomes = asyncio.run(ask_all(arguments, url, cases))
            seconds = time.perf_counter() - began
    summary = [_summary(group, outcomes) for group in dict.fromkeys(one.group for one in outcomes)]
    for row in summary:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        kind = "-in-time" if arguments.finish_in_time else ""
        target = arguments.out / f"{arguments.model}-{'-'.join(arguments.parts)}{kind}.json"
        record = {**_facts(), "model": arguments.model, "seconds": round(seconds, 1)}
        rows = [asdict(one) for one in outcomes]
        target.write_text(json.dumps({**record, "summary": summary, "rows": rows}, indent=1) + "\n")


async def ask_all(arguments: argparse.Namespace, url: str, cases: list[Case]) -> list[Outcome]:
    turn = asyncio.Semaphore(arguments.concurrency)
    done = 0

    async def one(client: httpx.AsyncClient, case: Case, seed: int) -> Outcome:
        nonlocal done
        async with turn:
            body = {
                **case.body,
                "model": "served",
                "max_tokens": arguments.max_tokens,
                "temperature": 1.0 if arguments.model == RANDOM else arguments.temperature,
                "seed": seed,
                "finish_in_time": arguments.finish_in_time,
            }
            for attempt in range(ATTEMPTS):
                response = await client.post("/v1/chat/completions", json=body)
                if response.status_code != 429:
                    break
                await asyncio.sleep(2.0**attempt)
            outcome = judged(case, response)
        done += 1
        if done % 20 == 0:
            print(f"{done} of {len(cases)}", file=sys.stderr, flush=True)
        return outcome

    async with httpx.AsyncClient(base_url=url, timeout=3600) as client:
        return await asyncio.gather(*[one(client, case, i) for i, case in enumerate(cases)])


def judged(case: Case, response: httpx.Response) -> Outcome:
    if response.status_code != 200:
        fault = response.json().get("error", {}).get("message", "")
        return Outcome(case.group, case.name, str(response.status_code), False, 0, fault[:200])
    answer = response.json()
    choice, tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
    end = choice["finish_reason"]
    if end not in ("stop", "tool_calls"):
        return Outcome(case.group, case.name, end, False, tokens)
    message = choice["message"]
    calls = message.get("tool_calls") or []
    texts = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    if "" in case.schemas:
        texts = [("", message["content"])]
    fault = "" if texts else "no call"
    for name, text in texts:
        fault = fault or _fault(case.schemas.get(name, False), text)
    return Outcome(case.group, case.name, end, not fault, tokens, fault)


def _fault(schema: Any, text: str) -> str:
    """What is wrong with a text; empty for one that satisfies the schema. References never reach the network."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    kind = jsonschema.validators.validator_for(schema)
    try:
        found = next(kind(schema, registry=referencing.Registry()).iter_errors(value), None)
    except Exception as error:  # a schema that cannot be judged is no success
        return f"cannot be judged: {type(error).__name__}: {error}"[:200]
    return "" if found is None else f"{found.json_path}: {found.message}"[:200]


def schema_cases(is_random: bool) -> Iterator[Case]:
    for row in _lines("jsonschemabench/cases.jsonl"):
        text = json.dumps(row["schema"])
        if len(text) > MOST_SCHEMA:
            text = text[:MOST_SCHEMA] + " ..."
        question = (
            f"Write a short example of JSON that is valid against this JSON Schema:\n\n{text}"
        )
        body = {
            "messages": [_user("" if is_random else question)],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": row["schema"]},
            },
        }
        yield Case("jsonschemabench", row["id"], body, {"": row["schema"]})


def tool_cases(is_random: bool) -> Iterator[Case]:
    for part in BFCL:
        for row in _lines(f"bfcl_v4/{part}.jsonl"):
            tools = {one["name"]: _json_schema(one["parameters"]) for one in row["function"]}
            about = {one["name"]: one.get("description", "") for one in row["function"]}
            messages = [_user("")] if is_random else row["question"][0]
            body = {"messages": messages, **_tool_fields(tools, about, "parallel" in part)}
            yield Case(f"bfcl_v4 {part}", row["id"], body, tools)
    rows = list(_lines("gptoss_tool_cases/cases.jsonl"))
    tools = _tools_of(rows)
    for number, row in enumerate(rows):
        messages = [_user("" if is_random else row["input"])]
        chosen = {"type": "function", "function": {"name": row["tool_name"]}}
        body = {"messages": messages, **_tool_fields(tools, {}, False), "tool_choice": chosen}
        yield Case("gptoss_tool_cases", f"gptoss-{number}", body, tools)


PARTS = {"schemas": schema_cases, "tools": tool_cases}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text or "JSON"}


def _tool_fields(tools: dict[str, Any], about: dict[str, str], many: bool) -> dict[str, Any]:
    functions = [
        {"name": name, "description": about.get(name, ""), "parameters": schema, "strict": True}
        for name, schema in tools.items()
    ]
    return {
        "tools": [{"type": "function", "function": one} for one in functions],
        "tool_choice": "required",
        "parallel_tool_calls": many,
    }


def _json_schema(given: Any) -> Any:
    """A function's parameters with the types of JSON Schema; "any" is any type."""
    if isinstance(given, list):
        return [_json_schema(one) for one in given]
    if not isinstance(given, dict):
        return given
    found = {name: _json_schema(value) for name, value in given.items()}
    kind = given.get("type")
    if isinstance(kind, str):
        found["type"] = TYPES.get(kind, kind)
        if kind == "any":
            del found["type"]
    return found


def _tools_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The data names tools and the arguments it expects, so parameters are what those arguments are."""
    seen: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        seen[row["tool_name"]].append(json.loads(row["expected_arguments"]))
    tools = {}
    for name, examples in seen.items():
        properties = {key: _like(value) for one in examples for key, value in one.items()}
        required = [key for key in properties if all(key in one for one in examples)]
        tools[name] = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    return tools


def _like(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"type": "boolean"}
        case int() | float():
            return {"type": "number"}
        case list():
            return {"type": "array", "items": _like(value[0]) if value else {}}
        case dict():
            return {"type": "object", "properties": {key: _like(one) for key, one in value.items()}}
    return {"type": "string"}


def _write_random_model(folder: Path) -> None:
    """Its tokens are learnt from the data's own JSON, so that many cross the joints of JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"],
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=8,
        show_progress=False,
    )
    texts = [
        json.dumps(test["data"], indent=indent)
        for row in _lines("jsonschemabench/cases.jsonl")
        for test in row["tests"][:2]
        for indent in (None, 2)
    ]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(TINY))
    settings = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _lines(name: str) -> Iterator[dict[str, Any]]:
    folder, _, _ = name.partition("/")
    with open(data_folder(os.environ, folder) / name, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _summary(group: str, outcomes: list[Outcome]) -> dict[str, Any]:
    rows = [one for one in outcomes if one.group == group]
    ended = [one for one in rows if one.end in ("stop", "tool_calls")]
    return {
        "group": group,
        "asked": len(rows),
        "ended": len(ended),
        "valid": sum(one.is_valid for one in ended),
        "cut": sum(one.end == "length" for one in rows),
        "refused": sum(one.end == "400" for one in rows),
        "other": sum(one.end not in ("stop", "tool_calls", "length", "400") for one in rows),
        "tokens": sum(one.tokens for one in rows),
    }


def _facts() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )  # fmt: skip
    libraries = ("jsonschema", "llguidance", "torch")
    return {
        "command": ["benchmarks/grammar.py", *sys.argv[1:]],
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
    }


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help=f"or {RANDOM!r}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["schemas"])
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument(
        "--finish-in-time", action="store_true", help="answers are to be complete at --max-tokens"
    )
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--first", type=int, default=0, help="the case to begin with")
    parser.add_argument("--cases", type=int, default=10_000, help="at most so many")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="folder for <model>-<parts>.json")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
