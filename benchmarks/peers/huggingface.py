"""Hugging Face transformers: one static batch through `generate`."""

from __future__ import annotations

import torch
import transformers

from peers.cases import Generate, Job, serve_peer


def start(job: Job) -> tuple[Generate, str]:
    torch.set_num_threads(job.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.model_path, dtype=getattr(torch, job.weights)
    )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(prompts: list[list[int]], output_tokens: int) -> int:
        ids = torch.tensor(prompts)
        outputs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_tokens,
            do_sample=False,
        )
        return (outputs.shape[1] - ids.shape[1]) * len(prompts)

    return generate, transformers.__version__


if __name__ == "__main__":
    serve_peer(start)
