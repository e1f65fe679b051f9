"""Service classes above capacity: the slo policy beside first come, first served, on the arrivals of a recorded trace.

    NONET_DATA=DATA python benchmarks/service_classes.py --load 2            # on the scheduler's fake clock
    NONET_DATA=DATA python benchmarks/service_classes.py --load 2 --live     # SmolLM2 behind the HTTP server

Classes are drawn by seed: 30 % interactive, 20 % standard, 50 % batch. Arrivals are the Azure conversation trace's,
sped up by one factor until they bring `--load` times what the machine does at its best: all requests at once, which is
measured first. Goodput counts requests that met the targets of their class; batch has none. It is given over the whole
run, whose end is batch catching up, and over the time in which requests arrive, which is when there is overload and the
same for all policies. A last run leaves the batch requests out: what their company costs the others is the ratio of the
times per output token. With `--repeat`, which live runs need, the policies take turns, in the other order each time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from nonet.bench.metrics import percentile
from nonet.bench.workload import WorkItem, azure_trace, data_folder
from nonet.config.resolved import CacheGroup
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import ServiceClass
from nonet.kv.cache import KVCache
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.policy import POLICIES
from nonet.scheduler.simulate import Arrival, MachineModel, simulate

SHARES: dict[ServiceClass, float] = {"interactive": 0.3, "standard": 0.2, "batch": 0.5}

SMALL_VOCABULARY = 32_000  # token ids that any model knows
ALONE = "slo, without the batch requests"

# About an 8B model in bf16 on one GPU of 2023.
MACHINE = MachineModel(step_s=0.008, token_s=0.00002)

# class -> ttft and tpot in seconds; live, a small model on two cores
Targets = dict[str, tuple[float, float]]
SIMULATED: Targets = {"interactive": (1.0, 0.05), "standard": (5.0, 0.1)}
LIVE: Targets = {"interactive": (2.0, 0.25), "standard": (10.0, 0.5)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One request as its sender saw it; None where there was no token, or only one."""

    service_class: str
    ttft_s: float | None
    tpot_s: float | None
    end_s: float


# Policy or label, what became of the requests, and for how many seconds they arrived.
Run = tuple[str, list[Outcome], float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, help="2,000 simulated, 300 live")
    parser.add_argument("--load", type=float, default=2.0, help="arrivals over capacity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--live", action="store_true", help="a real model behind the server")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeat", type=int, default=1, help="turns of all policies")
    parser.add_argument("--batch-stretch", type=float, help="of slo; its own default when unset")
    args = parser.parse_args()
    targets = LIVE if args.live else SIMULATED
    run = _live if args.live else _simulated
    policies = ["fcfs", _spec(targets, args.batch_stretch)]
    runs = run(args, policies)
    found = [(label, _figures(outcomes, targets, window_s)) for label, outcomes, window_s in runs]
    for label, figures in found:
        print(label)
        for name, row in figures.items():
            print("  ", name, row)
    for measure in ("goodput_rps", "goodput_of_arrivals_rps"):
        fcfs, slo = (
            [figures["all"][measure] for label, figures in found if label == policy]
            for policy in policies
        )
        ratios = sorted(round(ours / theirs, 2) for theirs, ours in zip(fcfs, slo, strict=True))
        print(f"{measure} of interactive and standard requests over fcfs:", end=" ")
        print(f"median {median(ratios):.2f}x of {ratios}")
    beside, alone = (
        next(figures["online"] for label, figures in reversed(found) if label == wanted)
        for wanted in (policies[1], ALONE)
    )
    for name in ("tpot_p50_s", "tpot_p99_s"):
        print(
            f"{name} of online requests beside batch over without: {beside[name] / alone[name]:.3f}x"
        )
    if args.out is not None:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        args.out.write_text(json.dumps({"settings": settings, "results": found}, indent=1) + "\n")


def _spec(targets: Targets, batch_stretch: float | None) -> str:
    knobs = [f"{name}_ttft={ttft:g},{name}_tpot={tpot:g}" for name, (ttft, tpot) in targets.items()]
    if batch_stretch is not None:
        knobs.append(f"batch_stretch={batch_stretch:g}")
    return "slo:" + ",".join(knobs)


def _turns(policies: Sequence[str], repeat: int) -> list[str]:
    """Every policy once a turn, in the other order each time: what drifts meets both."""
    return [name for turn in range(repeat) for name in policies[:: 1 if turn % 2 == 0 else -1]]


def _items(args: argparse.Namespace, max_model_len: int, **settings: Any) -> list[WorkItem]:
    trace = azure_trace(
        data_folder(os.environ), "conv", num_requests=args.requests or (300 if args.live else 2000),
        max_model_len=max_model_len, seed=args.seed, **settings,
    )  # fmt: skip
    drawn = random.Random(args.seed).choices(
        list(SHARES), list(SHARES.values()), k=len(trace.items)
    )
    return [
        dataclasses.replace(item, service_tier=name, output_len=max(1, item.output_len))
        for item, name in zip(trace.items, drawn, strict=True)
    ]


def _simulated(args: argparse.Namespace, policies: Sequence[str]) -> list[Run]:
    limits = SchedulerLimits(
        max_num_seqs=64, max_tokens_per_step=2048, chunked_prefill=True, max_waiting=100_000, max_model_len=8192,
    )  # fmt: skip
    items = _items(args, 8192)

    def run(policy: str, speed: float, items: list[WorkItem] = items) -> list[Outcome]:
        arrivals = [
            Arrival(item.arrival_s / speed, _request(number, item))
            for number, item in enumerate(items)
        ]
        kv = KVCache((CacheGroup((0,), None),), 12_000, 16, prefix_cache=True)
        journeys = simulate(
            arrivals, limits=limits, kv=kv, policy=POLICIES.build(policy), machine=MACHINE
        )
        return [
            Outcome(
                journey.arrival.request.service_class, journey.ttft_s, journey.tpot_s,
                journey.token_s[-1] if journey.token_s else journey.arrival.at_s,
            )
            for journey in journeys
        ]  # fmt: skip

    span_s = items[-1].arrival_s - items[0].arrival_s
    all_at_once_s = max(one.end_s for one in run("fcfs", 1e9))
    speed = args.load * span_s / all_at_once_s
    print(
        f"all at once take {all_at_once_s:.1f} s; {span_s:.0f} s of trace are sped up {speed:.2f} times"
    )
    alone = run(policies[1], speed, _online(items))
    window_s = span_s / speed
    turns = [(policy, run(policy, speed), window_s) for policy in _turns(policies, args.repeat)]
    return [*turns, (ALONE, alone, window_s)]


def _online(items: list[WorkItem]) -> list[WorkItem]:
    return [item for item in items if item.service_tier != "batch"]


def _request(number: int, item: WorkItem) -> Request:
    return Request(
        request_id=str(number),
        prompt_ids=list(item.prompt_ids),
        params=SamplingParams(max_tokens=item.output_len, ignore_eos=True),
        service_class=item.service_tier or "standard",  # type: ignore[arg-type]
    )


def _live(args: argparse.Namespace, policies: Sequence[str]) -> list[Run]:
    import asyncio

    from nonet.bench.client import Target
    from nonet.bench.metrics import RequestTimes
    from nonet.bench.serving import ask_model, measure, running_server

    items = _items(args, 2000, length_scale=0.25, vocab_size=SMALL_VOCABULARY)
    every = items
    base = {
        "NONET_MODEL_MODEL": args.model,
        "NONET_MODEL_MAX_MODEL_LEN": "2048",
        "NONET_SCHEDULER_MAX_NUM_SEQS": "32",
    }

    def run(policy: str, speed: float, items: list[WorkItem] = items) -> list[RequestTimes]:
        with running_server({**base, "NONET_SCHEDULER_POLICY": policy}) as url:
            target = Target(url, asyncio.run(ask_model(url)).name, timeout_s=3600.0)
            # Enough steps of every size for the policy to know what a step costs.
            warm = [dataclasses.replace(item, service_tier="batch") for item in every[:8]]
            return measure(target, _work(items), [item.arrival_s / speed for item in items], warm)

    span_s = items[-1].arrival_s - items[0].arrival_s
    all_at_once_s = max(times.delivery_s[-1] for times in run("fcfs", 1e9))
    speed = args.load * span_s / all_at_once_s
    print(
        f"all at once take {all_at_once_s:.1f} s; {span_s:.0f} s of trace are sped up {speed:.2f} times"
    )
    turns = [(policy, policy, every) for policy in _turns(policies, args.repeat)]
    runs = [*turns, (ALONE, policies[1], _online(every))]
    return [
        (
            label,
            [
                Outcome(
                    item.service_tier or "",
                    times.ttft_s if times.delivery_s else None,
                    times.tpot_s if times.delivery_s else None,
                    times.delivery_s[-1] if times.delivery_s else times.sent_s,
                )
                for item, times in zip(some, run(policy, speed, some), strict=True)
            ],
            span_s / speed,
        )
        for label, policy, some in runs
    ]


def _work(items: list[WorkItem]) -> Any:
    from nonet.bench.workload import Workload

    return Workload("azure-conv with classes", tuple(items))


def _figures(
    outcomes: list[Outcome], targets: Targets, window_s: float
) -> dict[str, dict[str, float]]:
    """Per class: share within its targets, quantiles of the time to first token, refusals. Requests arrive for
    `window_s`."""
    duration_s = max(one.end_s for one in outcomes)
    rows: dict[str, dict[str, float]] = {}
    met_in_all = 0
    for name in SHARES:
        mine = [one for one in outcomes if one.service_class == name]
        if not mine:
            continue
        served = sorted(one.ttft_s for one in mine if one.ttft_s is not None)
        row = {
            "requests": len(mine),
            "not_served": len(mine) - len(served),
            "ttft_p50_s": round(percentile(served, 0.5), 3),
            "ttft_p99_s": round(percentile(served, 0.99), 3),
            "ttft_max_s": round(served[-1], 3),
        }
        if name in targets:
            ttft_s, tpot_s = targets[name]
            in_time = [one for one in mine if one.ttft_s is not None and one.ttft_s <= ttft_s]
            met = [one for one in in_time if one.tpot_s is None or one.tpot_s <= tpot_s]
            row["ttft_met"] = round(len(in_time) / len(mine), 4)
            row["all_met"] = round(len(met) / len(mine), 4)
            met_in_all += len(met)
        rows[name] = row
    tpots = sorted(
        one.tpot_s for one in outcomes if one.service_class in targets and one.tpot_s is not None
    )
    rows["online"] = {
        "tpot_p50_s": round(percentile(tpots, 0.5), 5),
        "tpot_p99_s": round(percentile(tpots, 0.99), 5),
    }
    rows["all"] = {
        "duration_s": round(duration_s, 1),
        "goodput_rps": round(met_in_all / duration_s, 3),
        "goodput_of_arrivals_rps": round(met_in_all / window_s, 3),
    }
    return rows


if __name__ == "__main__":
    main()
