"""`nonet generate`: prompts in, text out, all in one batch in this process."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from nonet.cli.flags import ENGINE, JsonFlag, configured
from nonet.cli.sampling import SamplingFlags
from nonet.cli.terminal import print_json, progress
from nonet.config.load import Loaded
from nonet.core.errors import ConfigError

__all__ = ["command"]

DEFAULT_MAX_TOKENS = 256


def generate(
    loaded: Loaded,
    prompts: Annotated[
        list[str] | None, Parameter(help="texts to complete; standard input when there is none")
    ] = None,
    *,
    chat: Annotated[
        bool,
        Parameter(help="each prompt is a user's message: apply the chat template", negative=()),
    ] = False,
    sampling: SamplingFlags | None = None,
    json: JsonFlag = False,
) -> int:
    """Complete prompts and print the text."""
    texts = prompts or [_standard_input()]
    from nonet.engine.llm import LLM
    from nonet.engine.prepare import default_params

    with progress("loading", "layers") as show:
        llm = LLM(config=loaded.config, load_progress=show)
    with llm:
        flags = sampling or SamplingFlags()
        params = flags.over(default_params(llm.spec.generation))
        if params.max_tokens is None:
            params = SamplingFlags(max_tokens=DEFAULT_MAX_TOKENS).over(params)
        if chat:
            outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params)
        else:
            with progress("generating", "requests") as show:
                outputs = llm.generate(texts, params, on_progress=show)
    if json:
        print_json(
            [
                {
                    "prompt": text,
                    "text": output.outputs[0].text,
                    "prompt_tokens": len(output.prompt_ids),
                    "output_tokens": len(output.outputs[0].token_ids),
                    "finish_reason": output.outputs[0].finish_reason,
                }
                for text, output in zip(texts, outputs, strict=True)
            ]
        )
    else:
        print("\n\n".join(output.outputs[0].text for output in outputs))
    return 0


command = configured(generate, *ENGINE)


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise ConfigError("no prompt was given; write it after `generate`, or pipe it in")
    text = sys.stdin.read()
    if not text.strip():
        raise ConfigError("standard input is empty; pipe a prompt in, or write it after `generate`")
    return text
