"""What a step asks the sampler for, and what it chose: on the device, on its way to the host, read.

Shapes: R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from nonet.core.outputs import TokenLogprob
from nonet.sampling.logprobs import LogprobTensors

__all__ = ["DeviceSamples", "SampleRow", "Sampled"]


class SampleRow(msgspec.Struct, frozen=True, gc=False):
    """One row of logits: the token at logical `position` of the sequence in `slot` is to be chosen.

    `draft_prefix` holds the drafted tokens between the known ones and this position; penalties count them here.
    """

    slot: int
    position: int
    draft_prefix: tuple[int, ...] = ()


class Sampled(msgspec.Struct, frozen=True, gc=False):
    """A row's token, or, with `error` set, why it has none (then `token_id` is -1)."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceSamples:
    """What a step chose: ids [R] (int64, -1 for rows without finite logits), and all of it on its way to the host.

    `logprob_rows` are the rows that asked for log probabilities, in the order of `logprobs`. `faults` say why rows have
    no token, where that is known. What is on the host may be read once `landed` has come, None where nothing travels.
    """

    ids: torch.Tensor
    host_ids: torch.Tensor
    logprob_rows: list[int]
    host_logprobs: LogprobTensors | None
    faults: dict[int, str]
    landed: torch.cuda.Event | None

    @classmethod
    def send(
        cls,
        ids: torch.Tensor,
        logprob_rows: list[int],
        logprobs: LogprobTensors | None,
        faults: dict[int, str],
    ) -> DeviceSamples:
        """Begin the copies: a step that is launched next does not delay them."""
        host_ids = ids.to("cpu", non_blocking=True)
        host_logprobs = None if logprobs is None else logprobs.to_host()
        landed = None
        if ids.device.type != "cpu":
            landed = torch.cuda.Event()
            landed.record()
        return cls(ids, host_ids, logprob_rows, host_logprobs, faults, landed)

    def wait(self) -> None:
        if self.landed is not None:
            self.landed.synchronize()
