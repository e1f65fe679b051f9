"""From token deltas to the whole result of one request: text, stop strings, log probabilities, per choice."""

from __future__ import annotations

from nonet.core.outputs import Completion, RequestOutput, SequenceDelta
from nonet.core.request import Request
from nonet.text.stream import TextStream
from nonet.text.tokenizer import Tokenizer

__all__ = ["PendingRequest"]


class PendingRequest:
    """A request that runs, with what it brought so far in `output`. Without a tokenizer there is no text."""

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer | None) -> None:
        self.request = request
        count = request.params.n
        self.output = RequestOutput(
            request_id=request.request_id,
            prompt=prompt,
            prompt_ids=request.prompt_ids,
            outputs=[Completion(index=index) for index in range(count)],
        )
        self._streams = (
            [TextStream(tokenizer, request.params) for _ in range(count)] if tokenizer else None
        )

    def feed(self, delta: SequenceDelta) -> bool:
        """Take one delta. True when a stop string ended the choice, so that the engine must drop its sequence."""
        choice = self.output.outputs[delta.index]
        if choice.finish_reason is not None:
            return False
        self.output.num_cached = max(self.output.num_cached, delta.num_cached)
        if delta.prompt_logprobs is not None:
            self.output.prompt_logprobs = delta.prompt_logprobs
        used = len(delta.token_ids)
        stop_string: str | None = None
        if self._streams is not None:
            stream = self._streams[delta.index]
            text = stream.feed(delta.token_ids, delta.finish_reason, delta.stop_token_id)
            choice.text += text.text
            used, stop_string = text.num_tokens, text.stop_string
        choice.token_ids.extend(delta.token_ids[:used])
        if delta.logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + delta.logprobs[:used]
        if stop_string is not None:
            choice.finish_reason, choice.stop_reason = "stop", stop_string
        elif delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            choice.error = delta.error
            if delta.stop_token_id is not None and delta.stop_token_id not in self.request.eos_ids:
                choice.stop_reason = delta.stop_token_id
        self.output.finished = all(one.finish_reason is not None for one in self.output.outputs)
        return stop_string is not None and delta.finish_reason is None
