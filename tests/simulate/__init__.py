"""The scheduler and the KV cache on a fake clock, with a runner that checks every step."""
