"""KV pruning on the Llama-3.1-8B shape on one GPU of 80 GB or more, in one call of about three minutes.

    PYTHONPATH=src python benchmarks/gpu_kv_prune.py --out benchmarks/<date>-<device>-kv-prune

Prompts of 16k tokens at batch 1, 8 and 24, then of 64k at batch 1 and 6: what full bfloat16 KV fits. Each length is
read once; the pruned run finds the prompts in the prefix cache, computes the query windows and prunes.
Beside torch and triton it needs msgspec and llguidance.
"""

from __future__ import annotations

import sys

from kv_prune import main

PRESET = ["--shape", "llama-8b", "--device", "cuda", "--lengths", "16384", "65536", "--batches", "1", "8", "24",
          "--pruner", "snapkv:budget=1024,window=32"]  # fmt: skip

if __name__ == "__main__":
    main([*PRESET, *sys.argv[1:]])
