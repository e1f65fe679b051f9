"""Automatic choices and their reasons, the memory plan by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.config.plans import CUDA, GEMMA3_270M, GIB, MACHINE, SMOLLM2, plan

from nonet.config.compat import CONFLICTS, refuse_conflicts
from nonet.config.groups import blocks_for, cache_groups, longest_that_fits, padded_layers
from nonet.config.load import from_options
from nonet.config.machine import Machine
from nonet.config.memory import kv_bytes_per_block, show_bytes
from nonet.config.resolve import resolve
from nonet.config.resolved import CacheGroup
from nonet.core.errors import ConfigError
from nonet.kv.format import KV_FORMATS
from nonet.quant.formats import WEIGHT_FORMATS


def test_smollm2_plan_by_hand() -> None:
    resolved = plan()
    # 30 layers x (576 x 64 x (18 + 6) + 3 x 576 x 1536) + 49152 x 576 = 134,479,872 weights of 2 bytes
    assert resolved.memory.weight_bytes == 2 * 134_479_872
    # keys and values x 30 layers x 16 tokens x 3 heads x 64 x 2 bytes
    assert resolved.memory.kv_bytes_per_block == 2 * 30 * 16 * 3 * 64 * 2 == 368_640
    # 4 float32 logit copies of 64 rows; 512 tokens of 3 x 576 + 24 x 64 + 3 x 1536 values; one rotary table
    workspace = 4 * (4 * 64 * 49152 + 512 * (3 * 576 + 24 * 64 + 3 * 1536) + 8192 * 64)
    assert resolved.memory.workspace_bytes == workspace
    free = 4 * GIB - resolved.memory.weight_bytes - workspace
    assert resolved.num_blocks == free // 2 // 368_640 - 1
    assert resolved.memory.kv_bytes == (resolved.num_blocks + 1) * 368_640
    assert resolved.memory.free_bytes == free - resolved.memory.kv_bytes
    assert resolved.groups == (CacheGroup(tuple(range(30)), None),)
    assert (resolved.dtype, resolved.kernels, resolved.threads) == ("bfloat16", "native", 2)
    assert (resolved.max_model_len, resolved.block_size) == (8192, 16)


@pytest.mark.parametrize(("wanted", "threads"), [(None, 2), (1, 1), (2, 2), (64, 2)])
def test_fewer_threads_where_openmp_is_told_so(wanted: int | None, threads: int) -> None:
    resolved = plan(machine=replace(MACHINE, wanted_threads=wanted))
    assert resolved.threads == threads
    assert ("OMP_NUM_THREADS" in resolved.reasons["threads"]) == (threads == 1)


def test_gemma_groups_and_page_by_hand() -> None:
    groups = cache_groups(GEMMA3_270M)
    assert [len(group.layers) for group in groups] == [3] * 6
    assert groups[0] == CacheGroup((5, 11, 17), None)
    assert groups[1] == CacheGroup((0, 1, 2), 512)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(18))
    # keys and values x 3 layers x 16 tokens x 1 head x 256 x 2 bytes
    assert kv_bytes_per_block(GEMMA3_270M, groups, 16, "bfloat16") == 2 * 3 * 16 * 256 * 2 == 49_152
    # 32768 tokens: 2048 blocks in the full group; 512 - 1 + 512 tokens and a border block in each of five others
    assert blocks_for(groups, 32768, 16, 512) == 2048 + 5 * (64 + 1)
    assert blocks_for(groups, 160, 16, 512) == 6 * 10


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize(("dim", "least"), [(64, 1.85), (128, 1.9)])
def test_kv_formats_nearly_double_the_blocks(name: str, dim: int, least: float) -> None:
    """As many blocks can be given out: codes of a byte, and two bytes of scale for each key and value of a head."""
    spec = replace(SMOLLM2, head_dim=dim, hidden_size=9 * dim, max_position=1 << 20)
    plain = plan(spec, max_num_seqs=64)
    kv_format = KV_FORMATS.build(name)
    config = from_options({"kv_format": name, "max_num_seqs": 64})
    rounded = resolve(
        config, spec, MACHINE, WEIGHT_FORMATS, model_path="m.gguf", kv_format=kv_format
    )
    assert rounded.memory.kv_bytes_per_block == 2 * 30 * 16 * 3 * (dim + 2)
    assert rounded.num_blocks >= least * plain.num_blocks
    assert (rounded.kv_format, plain.kv_format) == (name, "bfloat16")
    assert rounded.memory.kv_bytes <= plain.memory.kv_bytes + plain.memory.kv_bytes_per_block


def test_kernels_that_do_not_hold_a_format() -> None:
    int8 = KV_FORMATS.build("int8")
    int8.kernels = ("reference", "triton")
    config = from_options({"kv_format": "int8"})
    resolved = resolve(
        config, SMOLLM2, MACHINE, WEIGHT_FORMATS, model_path="m.gguf", kv_format=int8
    )
    assert resolved.kernels == "reference"
    assert resolved.reasons["kernels"] == "the native kernels do not hold KV format int8"
    config = from_options({"kv_format": "int8", "kernels": "native"})
    with pytest.raises(ConfigError, match="use kernels reference or triton, or another kv_format"):
        resolve(config, SMOLLM2, MACHINE, WEIGHT_FORMATS, model_path="m.gguf", kv_format=int8)


def test_a_window_saves_memory() -> None:
    full = replace(GEMMA3_270M, layer_windows=())
    blocks = blocks_for(cache_groups(full), 32768, 16, 512)
    page = kv_bytes_per_block(full, cache_groups(full), 16, "bfloat16")
    windowed = blocks_for(cache_groups(GEMMA3_270M), 32768, 16, 512) * 49_152
    assert windowed < 0.25 * blocks * page


@pytest.mark.parametrize(
    ("full", "sliding", "size", "padding"),
    [(3, 15, 3, 0), (4, 22, 4, 2), (10, 52, 6, 4), (6, 28, 6, 2), (5, 0, 5, 0), (1, 9, 1, 0), (7, 8, 4, 1)],
)  # fmt: skip
def test_group_sizes(full: int, sliding: int, size: int, padding: int) -> None:
    windows = (None,) * full + (1024,) * sliding
    groups = cache_groups(replace(SMOLLM2, num_layers=full + sliding, layer_windows=windows))
    assert max(len(group.layers) for group in groups) == size
    assert padded_layers(groups) == padding
    assert padding <= 0.1 * (full + sliding)


def test_padding_is_reported() -> None:
    windows = (None,) * 4 + (1024,) * 22
    resolved = plan(replace(SMOLLM2, num_layers=26, layer_windows=windows))
    assert "2 layers of padding" in resolved.reasons["groups"]


@pytest.mark.parametrize("num_blocks", [1, 7, 100, 3000])
def test_longest_that_fits_is_the_longest(num_blocks: int) -> None:
    for spec in (SMOLLM2, GEMMA3_270M):
        groups = cache_groups(spec)
        tokens = longest_that_fits(groups, num_blocks, 16, 512)
        assert blocks_for(groups, tokens, 16, 512) <= num_blocks
        assert blocks_for(groups, tokens + 16, 16, 512) > num_blocks


def test_every_automatic_choice_has_a_reason_and_no_other() -> None:
    automatic = {
        "device", "dtype", "kernels", "weight_format", "block_size", "max_num_seqs", "max_tokens_per_step",
        "groups", "kv_format", "memory_fraction", "num_blocks", "max_model_len", "threads",
        "deterministic",
        "overlap",
    }  # fmt: skip
    assert set(plan().reasons) == automatic
    chosen = plan(
        device="cpu", dtype="float32", kernels="native", weight_format="int8", block_size=32, num_blocks=64,
        max_num_seqs=8, max_tokens_per_step=64, max_model_len=512, threads=1, overlap=False,
    )  # fmt: skip
    assert set(chosen.reasons) == {"groups", "kv_format", "deterministic"}


@pytest.mark.parametrize(
    ("machine", "dtype", "kernels", "reason"),
    [
        (MACHINE, "bfloat16", "native", "hardware"),
        (replace(MACHINE, cpu_flags=frozenset({"avx2"})), "float32", "native", "no bfloat16"),
        (replace(MACHINE, compiler=None), "bfloat16", "reference", "hardware"),
        (CUDA, "bfloat16", "reference", "GPU"),
        (replace(CUDA, has_triton=True), "bfloat16", "triton", "GPU"),
    ],
)
def test_dtype_and_kernels(machine: Machine, dtype: str, kernels: str, reason: str) -> None:
    resolved = plan(machine=machine)
    assert (resolved.dtype, resolved.kernels) == (dtype, kernels)
    assert reason in resolved.reasons["dtype"]
    assert resolved.recording is (kernels != "reference")
    assert ("recording" in resolved.reasons) is (kernels == "reference")


def test_a_missing_compiler_is_named() -> None:
    reason = plan(machine=replace(MACHINE, compiler=None)).reasons["kernels"]
    assert reason.startswith("no C++ compiler")


def test_cuda_uses_gpu_memory() -> None:
    resolved = plan(machine=CUDA)
    assert resolved.device == "cuda"
    assert "H100" in resolved.reasons["device"]
    assert resolved.max_tokens_per_step == 8192
    with pytest.raises(ConfigError, match="GPU does not tell"):
        plan(machine=replace(CUDA, gpu_free_bytes=None))


def test_a_gpu_plan_by_hand(tmp_path: Path) -> None:
    on_gpu = replace(CUDA, has_triton=True)
    resolved = plan(machine=on_gpu, max_num_seqs=12, max_tokens_per_step=64, max_model_len=1024)
    memory = resolved.memory
    # graphs of 1, 2, 4, 8 and 12 decodes, of 16, 32 and 64 tokens of up to 12 sequences, and of those with chunks of up
    # to 2, 4, 8 and 16; all share one memory, that of 64 tokens and the float32 logits of 12 rows; 4 MiB each for the
    # driver
    activations = 3 * 576 + 24 * 64 + 3 * 1536
    assert memory.graph_bytes == 4 * (12 * 49152 + 64 * activations) + 12 * (4 << 20)
    assert memory.runtime_bytes == GIB
    parts = memory.weight_bytes + memory.workspace_bytes + memory.graph_bytes + memory.runtime_bytes
    assert memory.num_bytes == parts + memory.kv_bytes == 80 * GIB - memory.free_bytes
    assert memory.kv_bytes_per_block == 2 * 30 * 64 * 3 * 64 * 2
    assert plan(machine=on_gpu, recording=False).memory.graph_bytes == 0
    assert plan().memory.graph_bytes == plan().memory.runtime_bytes == 0
    sizes = {"max_num_seqs": 12, "max_tokens_per_step": 64, "max_model_len": 1024}
    coded = resolve(
        from_options({"kv_format": "int8", **sizes}), SMOLLM2, on_gpu, WEIGHT_FORMATS, model_path="m.gguf",
        kv_format=KV_FORMATS.build("int8"),
    )  # fmt: skip
    assert coded.memory.workspace_bytes == memory.workspace_bytes + (128 << 20)
    with_adapters = plan(
        machine=on_gpu,
        max_num_seqs=12,
        max_tokens_per_step=64,
        max_model_len=1024,
        lora_dir=str(tmp_path),
    )
    assert with_adapters.memory.graph_bytes == 2 * memory.graph_bytes, (
        "their steps are recorded too"
    )


def test_a_model_that_leaves_no_room_for_graphs_is_refused() -> None:
    """Without them in the plan it would start, and run out of memory at the first large batch."""
    weights = plan(machine=replace(CUDA, has_triton=True)).memory.weight_bytes
    small = replace(CUDA, has_triton=True, gpu_free_bytes=weights + GIB + GIB // 2)
    with pytest.raises(ConfigError, match="CUDA graphs and context"):
        plan(machine=small)


def test_context_is_lowered_when_memory_does_not_hold_it() -> None:
    resolved = plan(num_blocks=100)
    assert resolved.max_model_len == 1600
    assert resolved.reasons["max_model_len"].startswith("the model was made for 8192")


def test_blocks_stop_at_what_can_be_used() -> None:
    resolved = plan(max_num_seqs=2, max_model_len=1024)
    assert resolved.num_blocks == 2 * 64
    assert "full length" in resolved.reasons["num_blocks"]


def test_heads_that_the_native_kernels_do_not_take() -> None:
    odd = replace(SMOLLM2, head_dim=40)
    assert plan(odd).kernels == "reference"
    assert "these have 40" in plan(odd).reasons["kernels"]
    with pytest.raises(ConfigError, match="these have 40; use kernels reference"):
        plan(odd, kernels="native")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dtype": "float16"}, None),  # automatic kernels step aside
        ({"dtype": "float16", "kernels": "native"}, "float16 and kernels native exclude each other"),
        ({"kernels": "triton"}, "Triton kernels run on a GPU only"),
        ({"device": "cuda"}, "no NVIDIA driver was found"),
        ({"block_size": 24}, "give a multiple of 16"),
        ({"max_model_len": 9000}, "made for 8192 tokens"),
        ({"max_num_seqs": 64, "max_tokens_per_step": 32}, "max_num_seqs is 64, above max_tokens_per_step 32"),
        ({"chunked_prefill": False, "max_tokens_per_step": 512}, "chunked_prefill is off"),
        ({"memory_gib": 100.0}, "memory_gib is 100.0"),
        ({"num_blocks": 10**6}, "give at most"),
        ({"num_blocks": 8}, "one sequence of 8192 tokens needs 512 KV blocks"),
        ({"num_blocks": 63, "max_model_len": 1024}, "set max_model_len to at most 1008"),
        ({"weight_format": "native", "dummy_weights": True}, "holds no block formats"),
        ({"weight_format": "fp8", "kernels": "native"}, "weight_format fp8 and kernels native exclude each other"),
        ({"weight_format": "int3"}, "no weight format named 'int3'"),
        ({"weight_format": "int4:group=33"}, "give a multiple of 16"),
    ],
)  # fmt: skip
def test_contradictions(given: dict[str, object], sentence: str | None) -> None:
    if sentence is None:
        assert plan(**given).kernels == "reference"
        return
    with pytest.raises(ConfigError) as error:
        plan(**given)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_native_without_a_compiler_and_weights_without_memory() -> None:
    with pytest.raises(ConfigError, match="kernels is native, but no C\\+\\+ compiler"):
        plan(machine=replace(MACHINE, compiler=None), kernels="native")
    with pytest.raises(ConfigError, match="smaller weight_format"):
        plan(machine=replace(MACHINE, available_bytes=2**20))


def test_without_chunks_a_step_holds_a_prompt() -> None:
    resolved = plan(chunked_prefill=False, max_model_len=2048)
    assert resolved.max_tokens_per_step == 2048


def test_each_conflict_is_refused_with_its_reason() -> None:
    for row in CONFLICTS:
        with pytest.raises(ConfigError, match=row.remedy):
            refuse_conflicts(dict((row.first, row.second)))
        refuse_conflicts(dict((row.first,)))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 * GIB, "3.0 GiB"), (2**20, "1.0 MiB")]
)
def test_show_bytes(count: int, text: str) -> None:
    assert show_bytes(count) == text


def test_what_is_deterministic_as_it_is() -> None:
    assert plan().deterministic
    assert "native" in plan().reasons["deterministic"]
    assert not plan(kernels="reference").deterministic
    assert not plan(machine=replace(CUDA, has_triton=True)).deterministic
    asked = plan(machine=replace(CUDA, has_triton=True), deterministic=True)
    assert asked.deterministic
    assert "deterministic" not in asked.reasons


@pytest.mark.parametrize(
    ("machine", "options", "message"),
    [
        (MACHINE, {"kernels": "reference"}, "deterministic true and kernels reference exclude"),
        (MACHINE, {"speculate": "draft_model:model=x"}, "how many are drafted follows the load"),
        (replace(CUDA, has_triton=True), {"lora_dir": "."}, "leave lora_modules and lora_dir out"),
        (replace(CUDA, has_triton=True), {"kv_prune": "snapkv:budget=64"}, "leave kv_prune out"),
    ],
)  # fmt: skip
def test_where_bits_depend_on_company_deterministic_is_refused(
    machine: Machine, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(machine=machine, deterministic=True, **options)
    plan(machine=machine, **options)
