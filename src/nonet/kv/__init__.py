"""Bookkeeping of the KV cache: which block holds which tokens of which sequence. Torch-free, except `storage`."""
