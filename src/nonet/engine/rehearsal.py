"""A cold start's kernels, compiled while the weights load.

Some kernels are compiled when a step first needs them, which takes seconds, one after the other. Beside the loading a
model of the same shape with made-up weights and one layer of each kind goes through the usual kinds of steps, where
operations only compile what they would run. It is gone before the KV cache is made, whose place it takes meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from nonet.config.groups import cache_groups
from nonet.config.resolved import Resolved
from nonet.core.buckets import bucket_of, mixed_tokens_of
from nonet.core.model_spec import ModelSpec
from nonet.kernels.ops import Ops, StepShape

__all__ = ["StandIn", "rehearsing", "steps_for"]

logger = logging.getLogger("nonet.engine")

PROMPT = StepShape(100, 1, 1, 100)
DECODES = (1, 16, 64, 128)  # each meets a kernel of its own
BESIDE = (16, 128)  # decodes beside the end of a prompt
LAST_PIECE = 100  # tokens of it
PROMPTS = 1024  # tokens of prompts beside decodes, from which kernels for long steps are taken
BYTES_WHILE_ROUNDING = 10  # of a weight: as made, as float32, divided by its scale


@dataclass(frozen=True, slots=True)
class StandIn:
    """A model and its buffers: `forward` gives the logits of a step of up to `largest`."""

    ops: Ops
    forward: Callable[[StepShape], torch.Tensor]
    largest: StepShape


Make = Callable[[Resolved, ModelSpec], StandIn]


@contextmanager
def rehearsing(ops: Ops, resolved: Resolved, spec: ModelSpec, make: Make) -> Iterator[None]:
    """Compile beside what is done inside, where kernels are compiled at all; a failure is logged, never raised."""
    small = _one_of_each(spec)
    if ops.compile_only is None or resolved.memory.kv_bytes < _most_bytes(small):
        yield
        return
    stand_in = replace(resolved, groups=cache_groups(small), num_blocks=1)
    thread = threading.Thread(
        target=_rehearse, args=(stand_in, small, make), name="rehearsal", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _rehearse(resolved: Resolved, spec: ModelSpec, make: Make) -> None:
    try:
        made = make(resolved, spec)
        assert made.ops.compile_only is not None
        with torch.inference_mode(), made.ops.compile_only():
            for step in steps_for(made.largest):
                logits = made.forward(step)
                if made.ops.sampling is not None:
                    made.ops.sampling.argmax(logits)
        made.ops.close()
    except (
        Exception
    ) as error:  # the first request meets it again, if it is more than a lack of memory
        logger.warning("event=rehearsal_failed error=%r", error)


def steps_for(largest: StepShape) -> list[StepShape]:
    """A prompt alone, decodes, a prompt's end and long prompts beside decodes, at sizes that the engine's steps run at.

    >>> [step.num_seqs for step in steps_for(StepShape(512, 12, 12, 512))]
    [1, 1, 12, 12, 12]
    >>> [step.num_tokens for step in steps_for(StepShape(4096, 64, 64, 4096))][-2:]
    [1024, 1024]
    """
    most = min(largest.num_tokens, largest.num_seqs, largest.num_rows)
    sizes = dict.fromkeys(bucket_of(min(size, most), most) for size in DECODES)
    decodes = [StepShape(size, size, size, 1) for size in sizes]
    drafted = min(BESIDE[0], most)
    mixed = [StepShape(mixed_tokens_of(2 * drafted), drafted, drafted, 2)]
    for crowd in dict.fromkeys(min(crowd, most) for crowd in BESIDE):
        tokens = mixed_tokens_of(crowd + LAST_PIECE)
        mixed.append(StepShape(tokens, crowd, crowd, tokens))
    for crowd in dict.fromkeys(min(crowd, most) for crowd in BESIDE):
        mixed.append(StepShape(PROMPTS, crowd, crowd, PROMPTS))
    steps = [PROMPT, *decodes, *mixed]
    return [step for step in steps if _fits(step, largest)]


def _fits(step: StepShape, largest: StepShape) -> bool:
    return (
        step.num_tokens <= largest.num_tokens
        and step.num_seqs <= largest.num_seqs
        and step.num_rows <= largest.num_rows
    )


def _one_of_each(spec: ModelSpec) -> ModelSpec:
    """One layer with each window."""
    windows = tuple(dict.fromkeys(spec.windows))
    return replace(
        spec, num_layers=len(windows), layer_windows=windows if spec.layer_windows else ()
    )


def _most_bytes(spec: ModelSpec) -> int:
    largest = max(rows * columns for rows, columns in spec.linears.values())
    return 2 * spec.num_parameters + 2 * BYTES_WHILE_ROUNDING * largest
