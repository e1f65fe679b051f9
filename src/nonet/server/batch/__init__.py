"""Batches of both APIs: many requests in one file, run in idle capacity, each answered and billed once."""
