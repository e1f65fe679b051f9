"""What grammars cost a token: a batch in which each request has a schema of its own, beside one without, in turn.

    python benchmarks/grammar_overhead.py --model smollm2 --batch 8 --out benchmarks/<date>-<device>-grammar-overhead
    python benchmarks/grammar_overhead.py --shape llama-8b --device cuda --out DIR

The schemas ask for lists longer than the outputs, so that no answer ends early. Time counts from when every prompt is
computed and every grammar compiled.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from nonet.core.grammar import Grammar
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from record import write_record
from shapes import SHAPES, write_shape, write_tokenizer

PROMPT = 32  # tokens


@dataclass(frozen=True)
class Row:
    """Milliseconds a token of every request, medians over rounds; `overhead` is the median of their own ratios."""

    batch: int
    plain_ms: float
    grammar_ms: float
    overhead: float
    overhead_min: float
    overhead_max: float


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as folder, _engine(arguments, Path(folder)) as llm:
        schemas = [_schema(number) for number in range(arguments.batch)]
        plain: list[Grammar | None] = [None] * arguments.batch
        for grammars in (schemas, plain):
            _token_ms(arguments, llm, grammars)
        pairs = [
            (_token_ms(arguments, llm, plain), _token_ms(arguments, llm, schemas))
            for _ in range(arguments.rounds)
        ]
    ratios = [with_grammar / without - 1 for without, with_grammar in pairs]
    row = Row(
        batch=arguments.batch,
        plain_ms=round(statistics.median(pair[0] for pair in pairs), 3),
        grammar_ms=round(statistics.median(pair[1] for pair in pairs), 3),
        overhead=round(statistics.median(ratios), 4),
        overhead_min=round(min(ratios), 4),
        overhead_max=round(max(ratios), 4),
    )
    print(json.dumps(asdict(row)))
    if arguments.out is not None:
        name = arguments.shape or Path(arguments.model).stem
        file = arguments.out / f"{name}-{arguments.weight_format}-{arguments.batch}.json"
        write_record(file, arguments.commit, row=asdict(row), rounds_ms=pairs)


def _schema(number: int) -> Grammar:
    """An object with a key of its own, whose list has no end that an output could reach."""
    items = [
        {"type": "string", "minLength": 1},
        {"type": "integer"},
        {"type": "boolean"},
        {"enum": ["red", "green"]},
    ]
    wanted = {"type": "array", "items": items[number % len(items)], "minItems": 2000 + number}
    key = f"field_{number}"
    schema = {
        "type": "object",
        "properties": {key: wanted},
        "required": [key],
        "additionalProperties": False,
    }
    return Grammar("json_schema", json.dumps(schema))


def _engine(arguments: argparse.Namespace, folder: Path) -> LLM:
    model = arguments.model
    if arguments.shape is not None:
        model = write_shape(folder, arguments.shape)
        vocab_size = SHAPES[arguments.shape]["vocab_size"]
        assert isinstance(vocab_size, int)
        write_tokenizer(folder, vocab_size)
    options: dict[str, object] = {} if arguments.threads is None else {"threads": arguments.threads}
    return LLM(
        model,
        device=arguments.device,
        weight_format=arguments.weight_format,
        dummy_weights=arguments.shape is not None,
        max_model_len=PROMPT + arguments.output + 16,
        max_num_seqs=arguments.batch,
        prefix_cache=False,
        **options,
    )


def _token_ms(arguments: argparse.Namespace, llm: LLM, grammars: list[Grammar | None]) -> float:
    """RuntimeError if an answer ends before its time: the batch would have shrunk."""
    rng = random.Random(0)
    engine, begun, tokens = llm.engine, set(), 0
    for number, grammar in enumerate(grammars):
        params = SamplingParams(
            temperature=1.0,
            seed=number,
            max_tokens=arguments.output,
            ignore_eos=grammar is None,
            grammar=grammar,
        )
        prompt = [rng.randrange(10, 400) for _ in range(PROMPT)]
        engine.add(Request(request_id=f"r{number}", prompt_ids=prompt, params=params))
    while len(begun) < len(grammars):
        for delta in engine.step():
            if delta.error is not None:
                raise RuntimeError(f"{delta.request_id}: {delta.error}")
            begun.add(delta.request_id)
            tokens += len(delta.token_ids)
    before = tokens
    start = time.perf_counter()
    while engine.has_work:
        tokens += sum(len(delta.token_ids) for delta in engine.step())
    seconds = time.perf_counter() - start
    if tokens != len(grammars) * arguments.output:
        raise RuntimeError(
            f"{tokens} tokens came where {len(grammars) * arguments.output} were asked for"
        )
    return 1e3 * seconds * len(grammars) / (tokens - before)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="smollm2")
    add("--shape", choices=sorted(SHAPES), help="made-up weights of this shape instead of a model")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--weight-format", default="auto")
    add("--batch", type=int, default=64)
    add("--output", type=int, default=64, help="output tokens of each request")
    add("--rounds", type=int, default=5)
    add("--threads", type=int)
    add("--commit", help="what runs, where there is no git to ask")
    add("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
