"""What speculation takes from the memory plan, and second models that do not go with the first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_resolve import CUDA, GEMMA3_270M, MACHINE, SMOLLM2

from nonet.config.load import from_options
from nonet.config.resolve import resolve
from nonet.config.resolved import Resolved
from nonet.config.speculation import Companion, Speculation
from nonet.core.errors import ConfigError
from nonet.core.model_spec import ModelSpec
from nonet.quant.formats import WEIGHT_FORMATS

SMALL = replace(SMOLLM2, num_layers=4, hidden_size=192, num_heads=3, num_kv_heads=1)
LOOKUP = Speculation(
    speculate="prompt_lookup", draft_length="adaptive", max_drafts=16, lookahead_tokens=0
)


def companion(spec: ModelSpec = SMALL, weight_format: str = "dense") -> Speculation:
    second = Companion(
        name="small",
        model_path="",
        spec=spec,
        weight_format=weight_format,
        held=WEIGHT_FORMATS.build(weight_format),
    )
    return Speculation(
        speculate="draft_model:model=small",
        draft_length="fixed",
        max_drafts=4,
        lookahead_tokens=4,
        second_model=second,
    )


def plan(asked: Speculation | None, spec: ModelSpec = SMOLLM2, **given: object) -> Resolved:
    config = from_options({"num_blocks": 600, **given})
    return resolve(config, spec, MACHINE, WEIGHT_FORMATS, model_path="m.gguf", speculation=asked)


def test_nothing_asked_for_takes_nothing() -> None:
    resolved = plan(None)
    assert resolved.speculation is None
    assert resolved.memory.second_model_bytes == 0


def test_rows_to_verify_need_logits() -> None:
    without, with_lookup = plan(None), plan(LOOKUP)
    assert with_lookup.speculation is not None
    assert with_lookup.speculation.max_drafts_per_step == 256
    more = with_lookup.memory.workspace_bytes - without.memory.workspace_bytes
    assert more == 256 * 4 * 4 * SMOLLM2.vocab_size
    few = plan(LOOKUP, max_num_seqs=2)
    assert few.speculation is not None
    assert few.speculation.max_drafts_per_step == 32


def test_drafts_leave_each_sequence_its_token() -> None:
    tight = plan(LOOKUP, max_num_seqs=16, max_tokens_per_step=20)
    assert tight.speculation is not None
    assert tight.speculation.max_drafts_per_step == 4


def test_a_second_model_by_hand() -> None:
    without, beside = plan(None, dtype="bfloat16"), plan(companion(), dtype="bfloat16")
    second = beside.speculation and beside.speculation.second_model
    assert second is not None
    assert second.weight_format == "dense"
    assert second.weight_bytes == 2 * SMALL.num_parameters
    # keys and values x 4 layers x 16 tokens x 1 head x 64 x 2 bytes
    assert second.kv_bytes_per_block == 2 * 4 * 16 * 64 * 2
    more = beside.memory.kv_bytes_per_block - without.memory.kv_bytes_per_block
    assert more == second.kv_bytes_per_block
    assert beside.memory.second_model_bytes == second.weight_bytes + second.workspace_bytes
    assert beside.memory.free_bytes < without.memory.free_bytes - beside.memory.second_model_bytes
    assert "a second model of" in beside.reasons["speculation"]


def test_rounded_weights_of_a_second_model_take_less() -> None:
    sizes = []
    for weight_format in ("dense", "int8", "int4"):
        resolved = plan(companion(weight_format=weight_format))
        second = resolved.speculation and resolved.speculation.second_model
        assert second is not None
        sizes.append(second.weight_bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1]


def test_it_shares_the_table_of_the_group_that_keeps_all_tokens() -> None:
    small = replace(SMALL, vocab_size=GEMMA3_270M.vocab_size)
    resolved = plan(companion(small), GEMMA3_270M, num_blocks=4000)
    second = resolved.speculation and resolved.speculation.second_model
    assert second is not None
    assert resolved.groups[second.group].window is None


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="'small' has a vocabulary of 100 tokens and the model"):
        plan(companion(replace(SMALL, vocab_size=100)))


def test_a_model_of_windows_alone_is_refused() -> None:
    windows = replace(SMOLLM2, layer_windows=(64,) * SMOLLM2.num_layers)
    with pytest.raises(ConfigError, match="every layer of this model has a sliding window"):
        plan(companion(), windows)


def test_a_gpu_counts_it_too() -> None:
    config = from_options({"num_blocks": 600})
    resolved = resolve(
        config, SMOLLM2, CUDA, WEIGHT_FORMATS, model_path="m", speculation=companion()
    )
    assert resolved.memory.second_model_bytes > 0


def test_a_gpu_runs_ahead_beside_a_proposer_that_pauses_and_no_other() -> None:
    def overlap(asked: Speculation | None) -> tuple[bool, str]:
        config = from_options({"num_blocks": 600, "device": "cuda"})
        machine = replace(CUDA, has_triton=True)
        resolved = resolve(
            config, SMOLLM2, machine, WEIGHT_FORMATS, model_path="m.gguf", speculation=asked
        )
        return resolved.overlap, resolved.reasons["overlap"]

    assert overlap(None) == (True, "the GPU need not wait for the host between steps")
    assert overlap(LOOKUP)[0] is False
    is_on, reason = overlap(replace(LOOKUP, pauses=True))
    assert is_on
    assert reason.endswith("but where drafts are worth it")
