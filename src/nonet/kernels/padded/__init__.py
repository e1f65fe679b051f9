"""Plain torch over padded batches: what the ladder starts from. `flash` has Triton's attention in its place."""
