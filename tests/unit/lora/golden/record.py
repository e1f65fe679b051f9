"""Writes the golden adapters: PEFT's own directories, and what PEFT says each adds to each matrix.

python tests/unit/lora/golden/record.py    (needs peft and transformers; the files are committed)
"""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
MODEL = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
KINDS: dict[str, dict[str, object]] = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "all_linear_rslora": {
        "r": 4,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": "all-linear",
    },
    "regex": {"r": 2, "lora_alpha": 2, "target_modules": r".*\.1\..*(k_proj|up_proj)"},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "exclude_modules": ["layers.1.self_attn.o_proj"],
        "rank_pattern": {"k_proj": 2, "^model.layers.0.self_attn.q_proj": 1},
        "alpha_pattern": {"q_proj": 5},
    },
    "one_layer": {
        "r": 3,
        "lora_alpha": 3,
        "target_modules": ["gate_proj"],
        "layers_to_transform": [1],
    },
}


def main() -> None:
    for seed, (name, options) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            LlamaForCausalLM(MODEL),
            peft.LoraConfig(task_type="CAUSAL_LM", **options),  # type: ignore[arg-type]
        )
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.normal_()
        model.save_pretrained(HERE / name)
        (HERE / name / "README.md").unlink(missing_ok=True)
        deltas = {
            module_name.removeprefix("base_model.model."): module.get_delta_weight("default")
            for module_name, module in model.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        }
        contiguous = {key: delta.detach().contiguous() for key, delta in deltas.items()}
        save_file(contiguous, HERE / name / "deltas.safetensors")


if __name__ == "__main__":
    main()
