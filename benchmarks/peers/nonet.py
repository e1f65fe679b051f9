"""nonet itself, through the offline API; `weights` is its weight format."""

from __future__ import annotations

from importlib.metadata import version

from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from peers.cases import Generate, Job, serve_peer


def start(job: Job) -> tuple[Generate, str]:
    llm = LLM(
        job.model_path,
        dtype="bfloat16",
        weight_format=job.weights,
        threads=job.threads,
        max_model_len=job.max_model_len,
        max_num_seqs=job.max_num_seqs,
        memory_gib=2.0,
        prefix_cache=False,
    )

    def generate(prompts: list[list[int]], output_tokens: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        outputs = llm.generate(prompts, params)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate, version("nonet")


if __name__ == "__main__":
    serve_peer(start)
