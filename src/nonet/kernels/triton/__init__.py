"""The operations in Triton, for NVIDIA GPUs: one kernel per file, `ops` puts them behind the front door."""
