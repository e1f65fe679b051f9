"""OpenVINO GenAI: paged attention back end, GGUF read directly."""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai

from peers.cases import Generate, Job, serve_peer


def start(job: Job) -> tuple[Generate, str]:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2  # GiB
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.LLMPipeline(
        job.model_path,
        "CPU",
        scheduler_config=scheduler,
        ATTENTION_BACKEND="PA",
        INFERENCE_NUM_THREADS=job.threads,
    )

    def generate(prompts: list[list[int]], output_tokens: int) -> int:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output_tokens
        config.ignore_eos = True
        config.do_sample = False
        ids = np.array(prompts, dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        return sum(len(tokens) for tokens in pipeline.generate(inputs, config).tokens)

    return generate, openvino_genai.__version__


if __name__ == "__main__":
    serve_peer(start)
