"""vLLM 0.26.0 and the device's ceilings, measured once on one H100; rows of other engines are set against these.

Source: this project's measurement of 2026-11-23 on one NVIDIA H100 80GB HBM3, driver 580.159.04, torch 2.11.0+cu130,
16 cores of an Intel Xeon at 2.1 GHz. vLLM 0.26.0 with its defaults but for: no prefix caching, max_model_len 4096,
memory 0.9. fp8 is `quantization="fp8"` with `kv_cache_dtype="fp8"`. The rows hold on the same kind of device only while
its rate of copying and those of the products that a row's weights use are within `TOLERANCE` of those here.
"""

from __future__ import annotations

__all__ = [
    "CEILINGS",
    "DECISIVE",
    "DEVICE_NAME",
    "ENTRY_BYTES",
    "HUGGING_FACE",
    "MIX_ENTRIES",
    "MIX_FLOPS",
    "MIX_TOKENS",
    "TOLERANCE",
    "VLLM",
    "VLLM_LATENCY",
]

DEVICE_NAME = "NVIDIA H100 80GB HBM3"
TOLERANCE = 0.03

# Bytes per second, operations per second.
CEILINGS = {
    "copy": 2983e9,
    "sum": 2979e9,
    "bfloat16": 778e12,
    "float8": 1439e12,
    "float8_rowwise": 1480e12,
}

# By weights, the ceilings that decide whether its rows hold.
DECISIVE = {
    "bf16": ("copy", "bfloat16"),
    "fp8": ("copy", "bfloat16", "float8", "float8_rowwise"),
}

# By weights: figures by the name that `table` prints. Rates are tokens per second.
VLLM: dict[str, dict[str, float]] = {
    "bf16": {
        "mix output tok/s run 0": 8991, "mix output tok/s run 1": 9215,
        "decode 1 tok/s": 153.4, "decode 1 ms/step": 6.50, "decode 8 tok/s": 1162, "decode 8 ms/step": 6.65,
        "decode 32 tok/s": 4247, "decode 32 ms/step": 7.14, "decode 64 tok/s": 7531, "decode 64 ms/step": 7.76,
        "decode 128 tok/s": 12092, "decode 128 ms/step": 9.10, "decode 256 tok/s": 16772, "decode 256 ms/step": 12.24,
        "prefill 1x128 ms": 13.3, "prefill 1x2048 tok/s": 38118, "prefill 8x2048 tok/s": 42553,
        "prefill 32x2048 tok/s": 43110,
    },
    "fp8": {
        "mix output tok/s run 0": 12554, "mix output tok/s run 1": 12790,
        "decode 1 tok/s": 227.9, "decode 1 ms/step": 4.35, "decode 8 tok/s": 1742, "decode 8 ms/step": 4.48,
        "decode 32 tok/s": 6049, "decode 32 ms/step": 5.03, "decode 64 tok/s": 10955, "decode 64 ms/step": 5.30,
        "decode 128 tok/s": 16638, "decode 128 ms/step": 6.72, "decode 256 tok/s": 22594, "decode 256 ms/step": 9.40,
        "prefill 1x128 ms": 12.6, "prefill 1x2048 tok/s": 53579, "prefill 8x2048 tok/s": 63972,
        "prefill 32x2048 tok/s": 65613,
    },
}  # fmt: skip

# bf16 under Poisson arrivals, by rate; milliseconds. fp8 was not measured under load.
VLLM_LATENCY: dict[str, dict[str, float]] = {
    name: dict(zip(
        ("output tok/s", "TTFT p50", "TTFT p90", "TTFT p99", "TPOT p50", "TPOT p90", "TPOT p99", "gap p50", "gap p99",
         "gap max"), values, strict=True))
    for name, values in {
        "2": (781, 30, 50, 110, 7.15, 7.35, 7.73, 6.8, 19, 99),
        "8": (2080, 38, 73, 139, 8.58, 8.90, 9.25, 7.4, 33, 70),
        "16": (3872, 44, 83, 152, 10.4, 11.8, 13.5, 8.3, 40, 86),
        "24": (5582, 49, 87, 124, 13.0, 14.3, 17.3, 9.8, 40, 96),
    }.items()
}  # fmt: skip

# transformers 5.17.0, `generate`, fp16, sdpa: useful output tokens per second by batch.
HUGGING_FACE = {"8": 72.4, "32": 242.4}

MIX_TOKENS = 143_016  # output tokens of the published mix

# What the mix takes: operations of its prompts and outputs, and entries of keys and values that decodes read.
MIX_FLOPS = 3.74e15 + 2.20e15
MIX_ENTRIES = 99.1e6
ENTRY_BYTES = {"bf16": 131_072, "fp8": 65_536}
