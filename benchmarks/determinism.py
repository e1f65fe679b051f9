"""How many different answers one prompt gets among random company, with `deterministic` on and off, and what it costs.

    python benchmarks/determinism.py --model smollm2 --copies 100 --out benchmarks/<date>-<device>-determinism
    python benchmarks/determinism.py --model smollm2 --copies 40 --off-kernels reference   # what plain torch does
    python benchmarks/determinism.py --shape llama-8b --device cuda --out benchmarks/<date>-<device>-determinism

Copies of one prompt are sent in groups of 1 to 64 requests, the others with prompts and lengths of their own, so that
every copy meets other batch sizes, other chunks and other prefix hits. An answer is its tokens with their log
probabilities, bit by bit. Both engines get the same groups, one engine after the other; the speed ratio is that of
their times for the groups of one size, after a pass that is not counted.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from shapes import SHAPES, write_shape

Answer = tuple[tuple[int, float], ...]
SIZES = (1, 2, 3, 5, 8, 13, 16, 24, 32, 48, 64)


@dataclass
class Seen:
    """What an engine answered to the copies, and its seconds by size of the group."""

    answers: Counter[Answer] = field(default_factory=Counter)
    seconds: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    tokens: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Result:
    """Of one setting of the switch. `speed` is output tokens per second by size of the group."""

    deterministic: bool
    copies: int
    different_answers: int
    different_tokens: int
    most_frequent: int
    speed: dict[int, float]
    prefill_tokens_per_s: float


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.shape is not None:
            model = write_shape(Path(folder), arguments.shape)
        results = []
        for switch in (False, True):
            with _engine(arguments, model, switch) as llm:
                results.append(_measure(arguments, llm))
                print(_row(results[-1]), flush=True)
                info = llm.engine.info
    off, on = results
    slowdown = {size: off.speed[size] / on.speed[size] - 1 for size in on.speed}
    prefill = off.prefill_tokens_per_s / on.prefill_tokens_per_s - 1
    _show(slowdown, prefill)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        record = {
            "command": {key: str(value) for key, value in vars(arguments).items()},
            "kernels": info.kernels,
            "dtype": info.dtype,
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
            "torch": torch.__version__,
            "results": [asdict(result) for result in results],
            "slowdown_by_batch": slowdown,
            "slowdown_prefill": prefill,
        }
        name = arguments.shape or Path(arguments.model).stem
        form = f"{arguments.weight_format}-{arguments.kv_format}".replace(":", "-")
        file = arguments.out / f"{name}-{form}.json"
        file.write_text(json.dumps(record, indent=2) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="smollm2")
    add("--shape", choices=sorted(SHAPES), help="made-up weights of this shape instead of a model")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--dtype", default="auto")
    add("--weight-format", default="auto")
    add("--kv-format", default="auto")
    add("--copies", type=int, default=1000)
    add("--prompt", type=int, default=200, help="prompt tokens of a copy")
    add("--output", type=int, default=48, help="output tokens of a copy")
    add("--prefill", type=int, nargs=2, default=(8, 2048), help="prompts and tokens of each")
    add("--temperature", type=float, default=0.0)
    add("--largest", type=int, default=64, help="requests of the largest group")
    add("--threads", type=int)
    add(
        "--off-kernels", default="auto", help="of the engine without the switch: reference on a CPU"
    )
    add("--out", type=Path)
    return parser.parse_args()


def _engine(arguments: argparse.Namespace, model: str, switch: bool) -> LLM:
    options: dict[str, object] = {"num_blocks": 4096} if arguments.device == "cpu" else {}
    if arguments.threads is not None:
        options["threads"] = arguments.threads
    return LLM(
        model,
        dummy_weights=arguments.shape is not None,
        device=arguments.device,
        dtype=arguments.dtype,
        weight_format=arguments.weight_format,
        kv_format=arguments.kv_format,
        max_num_seqs=arguments.largest,
        max_model_len=4096,
        kernels="auto" if switch else arguments.off_kernels,
        deterministic=switch,
        **options,
    )


def _measure(arguments: argparse.Namespace, llm: LLM) -> Result:
    for size in SIZES:
        if size <= arguments.largest:  # kernels are compiled and steps recorded
            _run(llm, _group(arguments, llm, size, size, random.Random(size)), Seen())
    seen = Seen()
    for number, (size, copies) in enumerate(_sizes(arguments)):
        _run(llm, _group(arguments, llm, size, copies, random.Random(1000 + number)), seen)
    prompts, length = arguments.prefill
    rng = random.Random(7)
    speeds = []
    for _ in range(3):
        requests = [
            _request(f"p{i}", rng.choices(range(5, llm.spec.vocab_size), k=length), 1, 0.0)
            for i in range(prompts)
        ]
        began = time.perf_counter()
        _run(llm, requests, Seen())
        speeds.append(prompts * length / (time.perf_counter() - began))
    tokens = Counter(tuple(token for token, _ in answer) for answer in seen.answers)
    return Result(
        deterministic=llm.engine.info.deterministic,
        copies=seen.answers.total(),
        different_answers=len(seen.answers),
        different_tokens=len(tokens),
        most_frequent=max(seen.answers.values()),
        speed={size: seen.tokens[size] / seen.seconds[size] for size in sorted(seen.seconds)},
        prefill_tokens_per_s=sorted(speeds)[1],
    )


def _sizes(arguments: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """(size of the group, copies in it) until all copies are sent: from all of a group to one of them."""
    rng = random.Random(0)
    left = arguments.copies
    while left:
        for size in SIZES:
            copies = min(left, rng.randint(1, size))
            if size <= arguments.largest and copies:
                left -= copies
                yield size, copies


def _group(
    arguments: argparse.Namespace, llm: LLM, size: int, copies: int, rng: random.Random
) -> list[Request]:
    """Copies and fillers in a random order."""
    ids = range(5, llm.spec.vocab_size)
    prompt = random.Random(42).choices(ids, k=arguments.prompt)
    group = [
        _request(f"copy{i}", prompt, arguments.output, arguments.temperature) for i in range(copies)
    ]
    for number in range(size - copies):
        filler = rng.choices(ids, k=rng.randint(1, 2 * arguments.prompt))
        group.append(_request(f"filler{number}", filler, rng.randint(1, 2 * arguments.output), 0.8))
    rng.shuffle(group)
    return group


def _request(name: str, prompt: list[int], output: int, temperature: float) -> Request:
    params = SamplingParams(
        temperature=temperature, seed=11, max_tokens=output, ignore_eos=True, logprobs=0
    )
    return Request(request_id=name, prompt_ids=prompt, params=params)


def _run(llm: LLM, requests: list[Request], seen: Seen) -> None:
    answers: dict[str, list[tuple[int, float]]] = {request.request_id: [] for request in requests}
    began = time.perf_counter()
    for request in requests:
        llm.engine.add(request)
    while llm.engine.has_work:
        for delta in llm.engine.step():
            assert delta.error is None, delta.error
            for one in delta.logprobs or []:
                answers[delta.request_id].append((one.token_id, one.logprob))
    seen.seconds[len(requests)] += time.perf_counter() - began
    seen.tokens[len(requests)] += sum(map(len, answers.values()))
    for name, answer in answers.items():
        if name.startswith("copy"):
            seen.answers[tuple(answer)] += 1


def _row(result: Result) -> str:
    return (
        f"deterministic {result.deterministic!s:>5}: {result.copies} copies, {result.different_answers} answers, "
        f"{result.different_tokens} sequences of tokens"
    )


def _show(slowdown: dict[int, float], prefill: float) -> None:
    print("slowdown with the switch on, by size of the group:")
    print("  ".join(f"{size}: {share:+.1%}" for size, share in slowdown.items()))
    print(f"prefill: {prefill:+.1%}")


if __name__ == "__main__":
    main()
