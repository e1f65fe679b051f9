"""Text at the edges of the engine: tokenizers, chat templates, streaming detokenisation, stop strings. No torch."""
