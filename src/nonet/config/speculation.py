"""What speculation takes: positions verified in a step, KV slots ahead, and the room of a second model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nonet.config.computation import Computation
from nonet.config.memory import (
    HeldWeights,
    kv_bytes_per_block,
    show_bytes,
    weight_bytes,
    workspace_bytes,
)
from nonet.config.resolved import CacheGroup, SecondModelPlan, SpeculationPlan
from nonet.core.errors import ConfigError
from nonet.core.model_spec import ModelSpec

__all__ = ["Companion", "Speculation", "StepSizes", "Taken", "plan_speculation", "taken_by"]

# Drafts verified in one step, over all sequences: bounds the memory of their logits.
MOST_DRAFTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A second model that was found."""

    name: str  # as it was asked for
    model_path: str
    spec: ModelSpec
    weight_format: str  # a spec string
    held: HeldWeights  # what it stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """What the chosen proposer asks for."""

    speculate: str
    draft_length: str
    max_drafts: int  # for one sequence
    lookahead_tokens: int
    second_model: Companion | None = None
    pauses: bool = False  # it has no drafts for some steps, and says so


@dataclass(frozen=True, slots=True)
class StepSizes:
    """What the memory of a step depends on."""

    block_size: int
    max_num_seqs: int
    max_tokens_per_step: int
    max_model_len: int


def plan_speculation(
    asked: Speculation | None,
    spec: ModelSpec,
    groups: Sequence[CacheGroup],
    sizes: StepSizes,
    how: Computation,
    why: dict[str, str],
) -> SpeculationPlan | None:
    """The plan of `asked`; ConfigError where the second model does not go with the first."""
    if asked is None:
        return None
    second = asked.second_model
    plan = SpeculationPlan(
        speculate=asked.speculate,
        draft_length=asked.draft_length,
        max_drafts=asked.max_drafts,
        max_drafts_per_step=min(
            asked.max_drafts * sizes.max_num_seqs,
            max(1, sizes.max_tokens_per_step - sizes.max_num_seqs),
            MOST_DRAFTS,
        ),
        lookahead_tokens=asked.lookahead_tokens,
        second_model=None if second is None else _second(second, spec, groups, sizes, how),
    )
    if plan.second_model is not None:
        why["speculation"] = (
            f"a second model of {show_bytes(plan.second_model.weight_bytes)}, and "
            f"{show_bytes(plan.second_model.kv_bytes_per_block)} of its KV with each block"
        )
    return plan


@dataclass(frozen=True, slots=True)
class Taken:
    """Room that the rest of the plan does without."""

    num_rows: int = 0  # of logits, beside one for each sequence
    num_bytes: int = 0
    bytes_per_block: int = 0


def taken_by(plan: SpeculationPlan | None) -> Taken:
    if plan is None:
        return Taken()
    second = plan.second_model
    if second is None:
        return Taken(plan.max_drafts_per_step)
    return Taken(
        plan.max_drafts_per_step,
        second.weight_bytes + second.workspace_bytes,
        second.kv_bytes_per_block,
    )


def _second(
    asked: Companion,
    spec: ModelSpec,
    groups: Sequence[CacheGroup],
    sizes: StepSizes,
    how: Computation,
) -> SecondModelPlan:
    if asked.spec.vocab_size != spec.vocab_size:
        raise ConfigError(
            f"the draft model {asked.name!r} has a vocabulary of {asked.spec.vocab_size} tokens and the model one of "
            f"{spec.vocab_size}; take a draft model of the same family"
        )
    full = next((number for number, group in enumerate(groups) if group.window is None), None)
    if full is None:
        raise ConfigError(
            "a second model needs the blocks of all tokens, and every layer of this model has a sliding window; "
            "use prompt_lookup"
        )
    own = (CacheGroup(tuple(range(asked.spec.num_layers)), None),)
    return SecondModelPlan(
        model_path=asked.model_path,
        weight_format=asked.weight_format,
        weight_bytes=weight_bytes(asked.spec, how.dtype, asked.held, how.kernels, asked.model_path),
        workspace_bytes=workspace_bytes(
            asked.spec, sizes.max_tokens_per_step, sizes.max_num_seqs, sizes.max_model_len
        ),
        kv_bytes_per_block=kv_bytes_per_block(asked.spec, own, sizes.block_size, how.dtype),
        group=full,
    )
