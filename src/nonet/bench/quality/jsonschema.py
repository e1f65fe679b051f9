"""JSON for a given schema: does the answer parse, and does it satisfy the schema?

Idea: one message with the schema, greedy answer, free or held to the schema by a grammar; fences of Markdown around a
free one are forgiven. Validity is judged by the `jsonschema` package where it is installed; a schema that the grammar
does not support counts as failed. Reference: JSONSchemaBench (arXiv 2501.10868).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nonet.bench.quality.base import Measure, Subject, TaskResult
from nonet.bench.quality.data import digest, read_lines, sample
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.statistics import share_interval
from nonet.core.errors import ConfigError
from nonet.core.grammar import Grammar
from nonet.core.outputs import Completion
from nonet.core.sampling_params import SamplingParams

__all__ = ["JsonSchema", "parse_answer"]

DATA = "jsonschemabench/cases.jsonl"
NO_VALIDATOR = "schema validity was not judged: the package jsonschema is not installed"


class JsonSchema:
    """The shares of answers that end by themselves, that parse and that satisfy their schema."""

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `jsonschema:n=...,grammar=...,max_tokens=...,max_schema=...,seed=...`."""

        n: int = 50
        grammar: bool = False  # hold the answer to the schema, as response_format does
        max_tokens: int = 256
        max_schema: int = 2000  # characters of a schema; longer ones are passed over
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self._config = config

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult:
        knobs = self._config
        cases = [
            case
            for case in read_lines(environ, DATA)
            if len(json.dumps(case["schema"])) <= knobs.max_schema
        ]
        if not cases:
            raise ConfigError(
                f"jsonschema: no schema has {knobs.max_schema} characters or fewer; raise max_schema"
            )
        items = sample(cases, knobs.n, knobs.seed)
        questions = [
            "Write one JSON value that is valid against this JSON Schema. Answer with the JSON alone.\n\n"
            + json.dumps(item["schema"])
            for item in items
        ]
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=knobs.max_tokens,
                grammar=Grammar("json_schema", json.dumps(item["schema"]))
                if knobs.grammar
                else None,
            )
            for item in items
        ]
        answers = subject.ask(questions, params)
        validator = _validator()
        rows = _judge(answers, [item["schema"] for item in items], validator)
        return TaskResult(
            measures=[
                Measure(
                    name=name, interval=share_interval(hits), items=[float(hit) for hit in hits]
                )
                for name, hits in rows.items()
            ],
            data=DATA,
            sha256=digest(items),
            details={
                "answers": [answer.text for answer in answers],
                "errors": [answer.error for answer in answers if answer.error is not None],
            },
            notes=[] if validator is not None else [NO_VALIDATOR],
        )


def _judge(
    answers: Sequence[Completion], schemas: Sequence[object], validator: _Satisfies | None
) -> dict[str, list[bool]]:
    parsed = [parse_answer(answer.text) for answer in answers]
    rows = {
        "ends": [answer.finish_reason == "stop" for answer in answers],
        "parses": [len(one) == 1 for one in parsed],
    }
    if validator is not None:
        rows["satisfies the schema"] = [
            len(one) == 1 and validator(one[0], schema)
            for one, schema in zip(parsed, schemas, strict=True)
        ]
    return rows


def parse_answer(answer: str) -> list[object]:
    """The JSON value of an answer, as a list of one; empty where there is none.

    >>> parse_answer("```json\\n{}\\n```"), parse_answer("Sure! {}")
    ([{}], [])
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", answer, re.DOTALL)
    try:
        return [json.loads(fenced.group(1) if fenced else answer)]
    except ValueError:
        return []


_Satisfies = Callable[[object, object], bool]


def _validator() -> _Satisfies | None:
    """Whether a value satisfies a schema, by the package; None where it is not installed.

    Its registry is empty, so that a reference in a schema never reaches out to the network: such a schema is failed.
    """
    try:
        package: Any = importlib.import_module("jsonschema")
        referencing: Any = importlib.import_module("referencing")
    except ImportError:
        return None
    broken = (package.SchemaError, referencing.exceptions.Unresolvable, RecursionError)

    def satisfies(value: object, schema: object) -> bool:
        dialect = package.validators.validator_for(schema)
        try:
            dialect.check_schema(schema)
            return bool(dialect(schema, registry=referencing.Registry()).is_valid(value))
        except broken:
            return False

    return satisfies
