"""adapter_config.json as PEFT writes it: what is understood; whatever else changes the numbers is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.fields import Fields
from nonet.weights.safetensors_file import parse_json
from nonet.weights.safetensors_source import text_model_name

__all__ = ["AdapterSettings", "read_settings"]

FILE = "adapter_config.json"
MAX_BYTES = 1 << 20
MAX_RANK = 4096


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Rank and scale of each adapted matrix, and which matrices these are.

    `targets` is None where the file has a pattern: it comes from a stranger and may take for ever to match, so which
    matrices are adapted is then read off the tensors alone.
    """

    where: str
    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: dict[str, float]
    alpha_pattern: dict[str, float]
    targets: tuple[str, ...] | None
    excluded: tuple[str, ...]
    layers: frozenset[int] | None  # None: all

    @property
    def largest_rank(self) -> int:
        return max(self.rank, *map(int, self.rank_pattern.values()), 1)

    def rank_of(self, module: str) -> int:
        return int(_match(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of the two factors is multiplied with."""
        rank, alpha = self.rank_of(module), _match(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def expected(self, modules: Sequence[str]) -> set[str] | None:
        """Those of the model's matrices that the file says are adapted; None where it does not tell."""
        if self.targets is None:
            return None
        return {
            module
            for module in modules
            if (not self.targets or _ends_with(module, self.targets))
            and not _ends_with(module, self.excluded)
            and (self.layers is None or _layer_number(module) in self.layers)
        }


def read_settings(folder: Path) -> AdapterSettings:
    """ModelFileError for a broken file, UnsupportedModelError for a sound one that asks for more than LoRA."""
    path = folder / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelFileError(f"{path}: larger than {MAX_BYTES} bytes")
        content = parse_json(path.read_bytes(), path)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read: {error.strerror}; an adapter is a directory that PEFT has written"
        ) from None
    fields = Fields(content, str(path))
    _refuse_unsupported(fields)
    layers = fields.items("layers_to_transform")
    if not all(type(number) is int for number in layers):
        raise ModelFileError(f"{path}: layers_to_transform holds something that is no number")
    return AdapterSettings(
        where=str(path),
        rank=fields.integer("r", 1, MAX_RANK),
        alpha=fields.number("lora_alpha", 0.0, 1e6),
        use_rslora=fields.boolean("use_rslora"),
        rank_pattern=_pattern(fields, "rank_pattern", 1, MAX_RANK),
        alpha_pattern=_pattern(fields, "alpha_pattern", 0.0, 1e6),
        targets=_targets(fields),
        excluded=_names(fields, "exclude_modules"),
        layers=frozenset(n for n in layers if type(n) is int) if layers else None,
    )


# What an adapter can be without: metadata, training only, or checked elsewhere. Anything else that is set is refused.
_HARMLESS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
_REASONS = {
    "use_dora": "DoRA rescales the base weights",
    "modules_to_save": "it replaces whole layers of the model",
    "lora_bias": "it has biases",
    "fan_in_fan_out": "its weights are transposed",
    "layer_replication": "it repeats layers of the model",
    "target_parameters": "it adapts parameters that are no linear layers",
    "trainable_token_indices": "it replaces token embeddings",
    "use_qalora": "QALoRA pools the inputs",
    "alora_invocation_tokens": "activated LoRA begins in the middle of a prompt",
}
# Starts that leave the base weights as they are; PiSSA, OLoRA, LoftQ and CorDA subtract from them.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def _refuse_unsupported(fields: Fields) -> None:
    kind = fields.values.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{fields.where}: peft_type is {kind!r}; only LORA is served")
    if fields.values.get("bias", "none") != "none":
        raise UnsupportedModelError(
            f"{fields.where}: bias is {fields.values['bias']!r}; only adapters without biases are served (bias 'none')"
        )
    start = fields.values.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise UnsupportedModelError(
            f"{fields.where}: init_lora_weights is {start!r}, which changes the base weights; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    for name, value in fields.values.items():
        if name in _HARMLESS or not value:
            continue
        because = _REASONS.get(name, "nonet does not know it")
        raise UnsupportedModelError(
            f"{fields.where}: {name} is set, and {because}; only plain LoRA on linear layers is served"
        )


def _targets(fields: Fields) -> tuple[str, ...] | None:
    """Endings of module names; empty for all linear layers, None for a pattern or where nothing is said."""
    given = fields.values.get("target_modules")
    if isinstance(given, str) and given.lower() == "all-linear":
        targets: tuple[str, ...] | None = ()
    elif given is None or isinstance(given, str):
        return None
    else:
        targets = _names(fields, "target_modules")
        if not targets:
            raise ModelFileError(f"{fields.where}: target_modules is empty")
    patterns = fields.items("layers_pattern")
    is_usual = patterns in ([], ["layers"]) and not isinstance(
        fields.values.get("exclude_modules"), str
    )
    return targets if is_usual else None


def _names(fields: Fields, key: str) -> tuple[str, ...]:
    names = fields.items(key)
    if not all(isinstance(name, str) for name in names):
        raise ModelFileError(f"{fields.where}: {key} holds something that is no name")
    return tuple(text_model_name(str(name)) for name in names)


def _pattern(fields: Fields, key: str, low: float, high: float) -> dict[str, float]:
    """Endings of module names to numbers. PEFT reads the keys as regular expressions; only plain ones are taken."""
    table = fields.table(key)
    found: dict[str, float] = {}
    for name in table.values:
        plain = name.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", plain):
            raise UnsupportedModelError(
                f"{fields.where}: {key} has the pattern {name[:100]!r}; only names of modules are served"
            )
        found[text_model_name(plain)] = (
            table.integer(name, int(low), int(high))
            if key == "rank_pattern"
            else table.number(name, low, high)
        )
    return found


def _match(pattern: dict[str, float], module: str, default: float) -> float:
    return next((value for name, value in pattern.items() if _ends_with(module, (name,))), default)


def _ends_with(module: str, endings: Sequence[str]) -> bool:
    """Whole parts of the name only: `q_proj` ends `self_attn.q_proj`, `proj` does not."""
    return any(module == ending or module.endswith("." + ending) for ending in endings)


def _layer_number(module: str) -> int:
    found = re.match(r"model\.layers\.(\d+)\.", module)
    return int(found[1]) if found else -1
