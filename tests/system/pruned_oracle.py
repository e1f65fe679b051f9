"""What a pruned model computes, by Hugging Face's own layers: attention with everything masked that pruning left out.

One pass over prompt and output together, without a cache: rows of the prompt see what they always see, later rows see
of the prompt only what stayed. Which entries stay is worked out here from the layer's own queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

__all__ = ["Keep", "gaps", "snapkv"]

# (queries [H, P, D], keys [K, P, D], scale) of the prompt to a boolean [K, P]
Keep = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def snapkv(budget: int, window: int, kernel: int) -> Keep:
    """arXiv 2404.14469 with average pooling and the mean over the heads that share keys, all heads at once."""

    def keep(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
        kv_heads, length, _ = keys.shape
        group = len(queries) // kv_heads
        scores = queries[:, -window:] @ keys.repeat_interleave(group, 0).transpose(1, 2) * scale
        seen = torch.ones(length, length, dtype=torch.bool).tril()[-window:]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).sum(1)
        votes = weights.view(kv_heads, group, length).mean(1)[:, : length - window]
        padded = F.pad(votes, (kernel // 2, kernel // 2))
        pooled = padded.unfold(1, kernel, 1).mean(-1)
        best = pooled.topk(budget - window, dim=1).indices
        kept = torch.zeros(kv_heads, length, dtype=torch.bool)
        kept.scatter_(1, best, True)
        kept[:, length - window :] = True
        return kept

    return keep


def gaps(
    model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int], keep: Keep
) -> torch.Tensor:
    """For each output token, how far its logit lies below the highest: zero where the oracle chooses the same."""
    AttentionInterface.register("pruned", _attention(len(prompt), keep))
    before = model.config._attn_implementation
    model.set_attn_implementation("pruned")
    try:
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *output]])
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    finally:
        model.set_attn_implementation(before)
    chosen = logits.gather(1, torch.tensor(list(output)).unsqueeze(1)).squeeze(1)
    return logits.max(-1).values - chosen


def _attention(num_prompt: int, keep: Keep) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        sliding_window: int | None = None,
        **ignored: object,
    ) -> tuple[torch.Tensor, None]:
        heads, length = query.shape[1], query.shape[2]
        group = heads // key.shape[1]
        at = torch.arange(length)
        seen = (at <= at[:, None]).repeat(heads, 1, 1)
        if sliding_window is not None:
            seen &= at > at[:, None] - sliding_window
        else:
            kept = keep(query[0, :, :num_prompt], key[0, :, :num_prompt], scaling)
            seen[:, num_prompt:, :num_prompt] &= kept.repeat_interleave(group, 0)[:, None]
        keys, values = (some[0].repeat_interleave(group, 0) for some in (key, value))
        scores = query[0] @ keys.transpose(1, 2) * scaling
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
        return mixed.transpose(0, 1).unsqueeze(0), None

    return attend
