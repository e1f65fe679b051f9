"""What config.json says about quantised weights, read without torch: the method, bits of codes, 8-bit floats."""

from __future__ import annotations

from nonet.core.errors import UnsupportedModelError
from nonet.core.fields import Fields
from nonet.quant.checkpoints import CHECKPOINT_FORMATS

__all__ = ["FLOAT8_BLOCK", "check_method", "declared_bits", "declares_float8"]

FLOAT8_BLOCK = 128  # rows and columns of the blocks that kernels keep

FLOAT8_METHODS = ("fbgemm_fp8", "fp8")


def check_method(config: Fields) -> None:
    """Refuse a quantization_config by its name when no layout is known for it."""
    method = config.values.get("quant_method", "unnamed")
    if method not in CHECKPOINT_FORMATS.names():
        raise UnsupportedModelError(
            f"{config.where}: weights quantised by {method!r} cannot be read; "
            f"{', '.join(CHECKPOINT_FORMATS.names())} can, and so can GGUF files and unquantised checkpoints"
        )


def declared_bits(config: Fields) -> int | None:
    """Bits of the widest integer codes; None where weights are held as floats.

    Those are 8-bit floats, and integers in act-order with more than one group: the memory plan must not count on
    codes where there may be none.
    """
    if config.has("bits"):
        scattered = config.boolean("desc_act") and config.values.get("group_size") != -1
        return None if scattered else config.integer("bits", high=32)
    groups = config.table("config_groups")
    weights = [groups.table(name).table("weights") for name in groups.values]
    integers = [w for w in weights if w.values.get("type") == "int"]
    if any(w.values.get("actorder") in ("group", "dynamic") for w in integers):
        return None
    return max((w.integer("num_bits", high=32) for w in integers), default=None)


def declares_float8(config: Fields) -> bool:
    """Whether all weights are 8-bit floats of a kind that kernels keep, to be met by rounded inputs."""
    if config.values.get("quant_method") in FLOAT8_METHODS:
        return _is_kept(config.values.get("weight_block_size"))
    groups = config.table("config_groups")
    tables = [groups.table(name) for name in groups.values if groups.table(name).has("weights")]
    return bool(tables) and all(
        one.table("weights").values.get("type") == "float"
        and one.table("weights").values.get("strategy") != "group"
        and _is_kept(one.table("weights").values.get("block_structure"))
        and one.has("input_activations")
        for one in tables
    )


def _is_kept(block: object) -> bool:
    return block is None or block == [FLOAT8_BLOCK, FLOAT8_BLOCK]
